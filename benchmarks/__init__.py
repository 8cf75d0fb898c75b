"""Measurements: `python -m benchmarks NAME` takes them, `python -m benchmarks report` writes them into documents."""
