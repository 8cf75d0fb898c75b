"""Measurements: `python -m benchmarks NAME` takes them, `python -m tools.report` writes them into documents."""
