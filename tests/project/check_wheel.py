"""Checks an installed wheel without torch: the extension loads and lists instruction sets."""

import importlib.machinery
import importlib.util
import shutil
import sys
from pathlib import Path

spec = importlib.util.find_spec("radam_fused")
assert spec is not None
package = Path(spec.submodule_search_locations[0])
assert Path(sys.prefix) in package.parents, package
assert importlib.util.find_spec("torch") is None, "this check wants an environment without torch"
for part in ("triton_kernels/kernels.py", "backends/triton.py", "benchmark/command.py", "py.typed"):
    assert (package / part).exists(), part
[library] = package.glob("_C.*.so")
loader = importlib.machinery.ExtensionFileLoader("_C", str(library))
extension = importlib.util.module_from_spec(importlib.util.spec_from_loader("_C", loader))
loader.exec_module(extension)
assert hasattr(extension, "cuda_architectures") == bool(shutil.which("nvcc"))
print("wheel without torch:", package.name, extension.instruction_sets())
