"""Times a step on this machine: python -m radam_fused bench."""
