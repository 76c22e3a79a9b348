"""The benchmark on a GPU."""
