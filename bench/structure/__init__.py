"""The step of this checkout against the step of another commit, in one run."""
