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
        build = Path(self.build_temp).resolve() / ext.name
        build.mkdir(parents=True, exist_ok=True)
        # Uses the tools of this Python, even if its environment is not active.
        path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", "")))
        tools = {name: shutil.which(name, path=path) for name in ("cmake", "ninja")}
        for name, tool in tools.items():
            if tool is None:
                raise RuntimeError(f"building radam_fused needs {name}, which is not on the PATH")
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
        ]
        subprocess.run(configure, check=True)
        subprocess.run([tools["cmake"], "--build", str(build), "--target", "_C"], check=True)


setup(ext_modules=[Extension("radam_fused._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
