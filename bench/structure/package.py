"""Copies the package of a checkout."""

import shutil
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PARTS = ("radam_fused", "triton_kernels")


def copy_package(root: Path, folder: Path) -> None:
    """Copy the package with its extension, in a layout for PYTHONPATH.

    Args:
        root: A checkout with the extension built in place, or such a copy.
        folder: Where the package comes to lie.

    Raises:
        SystemExit: The extension is not built.
    """
    if not list(root.glob("radam_fused/_C.*.so")):
        raise SystemExit(f"{root} has no extension: python setup.py build_ext --inplace")
    for part in PARTS:
        shutil.copytree(root / part, folder / part, symlinks=True)
    if not (folder / "radam_fused" / "benchmark").exists():  # an older package can lack it
        shutil.copytree(
            CHECKOUT / "radam_fused" / "benchmark", folder / "radam_fused" / "benchmark"
        )
    kernels = folder / "radam_fused" / "triton_kernels"  # the place in an installation
    if not kernels.is_symlink():
        kernels.symlink_to(Path("..") / "triton_kernels")
