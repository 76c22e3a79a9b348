"""Benchmarks: cases, rivals, the machine's limit, timing and the report."""
