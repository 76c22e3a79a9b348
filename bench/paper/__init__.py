"""The experiments of docs/evidence.md, one command each."""
