"""Trains a small transformer on the source of Python's standard library with three optimizers."""
