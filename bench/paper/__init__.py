"""The papers' claims and ours, each an experiment with one command."""
