"""Pictures of result files. Each says in itself, to a reader and to `benchmarks.report`, which file it shows."""
