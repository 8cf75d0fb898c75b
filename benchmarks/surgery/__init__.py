"""Model surgery on libraries of networks, and the saturation monitor: what `bench_surgery` measures."""
