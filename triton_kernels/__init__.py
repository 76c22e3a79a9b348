"""Triton engine (installed as radam_fused.triton_kernels)."""
