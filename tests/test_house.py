"""The shape of the code: imports flow one way, and the mathematics stands once a language."""

import ast
import re
from pathlib import Path

import radam_fused

PACKAGE = Path(radam_fused.__file__).parent
ROOT = PACKAGE.parent

# From what is imported to what imports it; nothing may import from its own row or a later one.
ROWS = [
    {"version", "rectification", "presets", "extension"},
    {"options"},
    {"state", "triton_kernels", "triton_kernels.radam_math"},
    {"flat", "triton_kernels.step"},
    {"triton_kernels.launch"},
    {"backends.launches"},
    {"backends.eager", "backends.cpu", "backends.cuda", "backends.triton"},
    {"backends"},
    {"optimizer", "functional"},
    {""},
    {"__main__"},
]


KERNELS = ROOT / "triton_kernels"  # installed within the package


def module_name(path):
    parts = path.relative_to(ROOT if KERNELS in path.parents else PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix("__init__").rstrip(".")


def imports(path, modules):
    """Our modules that a file imports, by name within the package."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
            target = ".".join(part for part in (base, node.module or "") if part)
            for alias in node.names:
                if alias.name == "_C":
                    continue  # compiled
                inner = ".".join(part for part in (target, alias.name) if part)
                yield inner if inner in modules else target


def test_imports_flow_one_way():
    paths = {module_name(p): p for p in [*PACKAGE.rglob("*.py"), *KERNELS.rglob("*.py")]}
    rank = {module: i for i, row in enumerate(ROWS) for module in row}
    assert set(paths) == set(rank)
    for module, path in paths.items():
        for imported in imports(path, paths):
            assert rank[imported] < rank[module], f"{module} imports {imported}"


def test_the_extension_is_imported_in_one_place():
    users = [p for p in PACKAGE.rglob("*.py") if re.search(r"from \.+ import _C\b", p.read_text())]
    assert [module_name(p) for p in users] == ["extension"]


def test_the_mathematics_stands_once_a_language():
    root = re.compile(r"\bsqrt(f|_rn)?\(|\b_?root\(")
    compiled = [p for p in (ROOT / "csrc").rglob("*.*") if root.search(p.read_text())]
    assert [p.name for p in compiled] == ["radam_math.h"]
    # The eager update, its root, and the coefficients on the host.
    python = sorted(module_name(p) for p in PACKAGE.rglob("*.py") if root.search(p.read_text()))
    assert python == ["backends.eager", "rectification"]
    triton = [p for p in KERNELS.rglob("*.py") if root.search(p.read_text())]
    assert [p.name for p in triton] == ["radam_math.py"]


def test_the_extension_does_not_know_torch():
    for path in (ROOT / "csrc").rglob("*.*"):
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)", path.read_text()), path
    [library] = PACKAGE.glob("_C.*.so")
    assert not re.search(rb"libtorch|libc10", library.read_bytes())
