"""Backends for devices as the tests run them: on a GPU, and without one."""
