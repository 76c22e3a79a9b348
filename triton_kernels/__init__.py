"""The kernels of the Triton backend. Installed as radam_fused.triton_kernels."""
