"""Everything that needs a GPU: `make gpu`, or `python -m tools.gpu --help`."""
