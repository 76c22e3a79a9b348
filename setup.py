"""Builds radam_fused._C with CMake and Ninja. pyproject.toml has the metadata."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Lets CMake choose the compiler and setuptools the place of the result."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build the extension, directly into the package."""
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = self.build_folder(ext.name)
        build.mkdir(parents=True, exist_ok=True)
        # Uses the tools of this Python, even if its environment is not active, and finds nvcc where
        # the toolkit usually is.
        toolkits = [home for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
        folders = [os.path.dirname(sys.executable), os.environ.get("PATH", "")]
        path = os.pathsep.join(folders + [os.path.join(home, "bin") for home in toolkits])
        tools = {name: shutil.which(name, path=path) for name in ("cmake", "ninja")}
        for name, tool in tools.items():
            if tool is None:
                raise RuntimeError(f"building radam_fused needs {name}, which is not on the PATH")
        chosen = os.environ.get("CUDAARCHS")
        configure = [
            tools["cmake"],
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            # A cached path of an earlier build can be in a temporary folder that is gone.
            f"-DCMAKE_MAKE_PROGRAM={tools['ninja']}",
            f"-DRADAM_FUSED_CUDA={os.environ.get('RADAM_FUSED_CUDA', 'AUTO')}",
            # The architectures of this build, not those of the one before in the same folder.
            *(
                [f"-DCMAKE_CUDA_ARCHITECTURES={chosen}"]
                if chosen
                else ["-UCMAKE_CUDA_ARCHITECTURES"]
            ),
        ]
        env = os.environ | {"PATH": path}
        subprocess.run(configure, check=True, env=env)
        command = [tools["cmake"], "--build", str(build), "--target", "_C"]
        subprocess.run(command, check=True, env=env)

    def build_folder(self, name: str) -> Path:
        """The folder of the build: for an editable installation, one that the next build finds."""
        if not getattr(self, "editable_mode", False):
            return Path(self.build_temp).resolve() / name
        environment = sys.prefix.strip(os.sep).replace(os.sep, "-")
        return ROOT / "build" / f"editable-{sys.implementation.cache_tag}-{environment}"


setup(ext_modules=[Extension("radam_fused._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
