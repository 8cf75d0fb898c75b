"""Whole training steps and inference of the paper's networks: `python -m benchmarks.models --help`."""
