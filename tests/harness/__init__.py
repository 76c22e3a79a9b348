"""The test harness: device backends with and without a GPU, the truth, helpers."""
