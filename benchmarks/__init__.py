"""Measurements: `python -m benchmarks.kernels` takes them, `python -m benchmarks.report` writes them into documents."""
