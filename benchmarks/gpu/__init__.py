"""The kernel benchmark on a GPU."""
