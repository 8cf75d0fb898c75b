"""How time grows with the size of x and with the number of caps: `python -m benchmarks.scaling --help`."""
