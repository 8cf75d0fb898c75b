"""Training steps of compiled networks, in both forms of the activation: `python -m benchmarks.compiled --help`."""
