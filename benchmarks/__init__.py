"""Timed comparisons. Run them from the root of the repository: `python -m benchmarks.steps`."""
