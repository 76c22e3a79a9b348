"""Compares the step of this checkout with the step of another commit, in one run."""
