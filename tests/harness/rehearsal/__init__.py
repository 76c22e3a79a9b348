"""A rehearsal of the checks on a GPU, on a machine without one."""
