"""The Triton backend's kernels and their launches (installed as radam_fused.triton_kernels)."""
