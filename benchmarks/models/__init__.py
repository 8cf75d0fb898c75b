"""The paper's networks with all implementations, their steps, and the largest batch: what `bench_models` measures."""
