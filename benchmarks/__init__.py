"""Measurements: `python -m benchmarks` (`make bench`) and `python -m benchmarks.chaos` (`make chaos`)."""
