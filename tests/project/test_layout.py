"""The layout of the code: one-way imports, one place of mathematics per language."""

import ast
import re
from pathlib import Path

import radam_fused

PACKAGE = Path(radam_fused.__file__).parent
ROOT = PACKAGE.parent

# A module may import only modules of earlier rows.
ROWS = [
    {
        "version",
        "rectification",
        "presets",
        "dtensors",
        "extension",
        "groups",
        "locks",
        "scaling",
        "interrupts",
        "tracing",
        "caller",
        "rounding",
    },
    {"elements"},
    {"overlap", "tensors"},
    {"values", "sums"},
    {"options", "settings"},
    {"docstrings", "option_sets"},
    {"state", "triton_kernels", "triton_kernels.radam_math", "triton_kernels.rounding"},
    {"triton_kernels.storage"},
    {"conversions", "formats", "triton_kernels.kernels"},
    {"allocation", "flat"},
    {"triton_kernels.upload", "triton_kernels.sum_kernels"},
    {"triton_kernels.sums"},
    {"triton_kernels.compiled"},
    {"backends.step"},
    {"backends.interface"},
    {"backends.launches"},
    {"backends.eager", "backends.cpu", "backends.cuda", "backends.triton"},
    {"backends"},
    {"faults", "loading", "masters", "separation", "spread"},
    {"norms"},
    {"plan"},
    {"clipping", "functional"},
    {"base"},
    {"init_group"},
    {"optimizer", "adam"},
    {"", "benchmark", "benchmark.models", "benchmark.timing", "benchmark.limit"},
    {"report", "benchmark.rivals"},
    {"benchmark.command"},
    {"__main__"},
]


KERNELS = ROOT / "triton_kernels"  # installed as radam_fused.triton_kernels


def module_name(path):
    parts = path.relative_to(ROOT if KERNELS in path.parents else PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix("__init__").rstrip(".")


def imports(path, modules):
    """The modules of the package that a file imports."""
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


def test_the_mathematics_stands_once_per_language():
    root = re.compile(r"\bsqrt(f|_rn)?\(|\b_?root\(")
    compiled = [p for p in (ROOT / "csrc").rglob("*.*") if root.search(p.read_text())]
    assert [p.name for p in compiled] == ["radam_math.h"]
    # The eager update and the coefficients on the host.
    python = sorted(module_name(p) for p in PACKAGE.rglob("*.py") if root.search(p.read_text()))
    assert python == ["backends.eager", "rectification"]
    triton = [p for p in KERNELS.rglob("*.py") if root.search(p.read_text())]
    assert [p.name for p in triton] == ["radam_math.py"]


def test_the_extension_does_not_know_torch():
    for path in (ROOT / "csrc").rglob("*.*"):
        assert not re.search(r"#include\s*[<\"](torch/|ATen|c10)", path.read_text()), path
    [library] = PACKAGE.glob("_C.*.so")
    assert not re.search(rb"libtorch|libc10", library.read_bytes())


def test_the_map_names_every_file():
    """CONTRIBUTING.md has a table per folder, with one line per file."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tables = dict(re.findall(r"^### `([\w/]+)/`.*?\n(.*?)(?=^##)", text, re.M | re.S))
    listed = {f"{folder}/{name}" for folder in tables for name in cells(tables[folder])}
    kept = ("*.py", "*.h", "*.c", "*.cpp", "*.cu", "*.def")
    folders = {name.partition("/")[0] for name in tables}
    files = {path for folder in folders for kind in kept for path in (ROOT / folder).rglob(kind)}
    assert listed == {str(p.relative_to(ROOT)) for p in files if p.read_text().strip()}


def cells(table):
    return re.findall(r"^\| `([^`]+)` \|", table, re.M)


def test_no_file_is_long():
    for folder in ("csrc", "radam_fused", "triton_kernels", "tests", "bench"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in (".py", ".h", ".cpp", ".cu") and path.name != "tensor_table.cpp":
                assert path.read_text().count("\n") < 400, path
