"""Speed of the activation alone: `python -m benchmarks.kernels`."""
