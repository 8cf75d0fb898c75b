"""What maintainers run: everything that needs a GPU, wheels, comparisons of result files."""
