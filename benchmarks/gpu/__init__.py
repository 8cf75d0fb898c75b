"""Everything that needs a GPU: `make gpu`, or `python -m benchmarks.gpu --help`."""
