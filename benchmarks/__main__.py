"""Command line: `python -m benchmarks NAME --help`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from benchmarks.harness.cli import Bench
from benchmarks.harness.cli import main as run
from benchmarks.harness.entry import exit_with

# The module of each command, imported when it is called.
MODULES = {
    "kernels": "benchmarks.bench_kernels",
    "models": "benchmarks.bench_models",
    "compiled": "benchmarks.bench_compile",
    "triton-op": "benchmarks.bench_triton_op",
    "scaling": "benchmarks.bench_scaling",
    "memory": "benchmarks.bench_depth",
    "profile": "benchmarks.bench_profile",
    "surgery-sweep": "benchmarks.bench_surgery",
    "surgery-zoo": "benchmarks.bench_surgery",
    "surgery-monitor": "benchmarks.bench_surgery",
}

# Those that start processes have a command line of their own.
COMMANDS = {
    "road": "benchmarks.bench_road",
    "batch-norm": "benchmarks.bench_batch_norm",
    "sites": "benchmarks.bench_sites",
    "pages": "benchmarks.bench_pages",
}


def bench_of(name: str) -> Bench:
    """The benchmark of this name."""
    found: Bench = importlib.import_module(MODULES[name]).BENCHES[name]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        return int(importlib.import_module(COMMANDS[name]).main(rest))
    if name not in MODULES:
        out = sys.stdout if name in ("-h", "--help") else sys.stderr
        print(f"usage: python -m benchmarks NAME [--help]; NAME is one of {', '.join([*MODULES, *COMMANDS])}", file=out)
        return 0 if out is sys.stdout else 2
    return run(bench_of(name), rest)


if __name__ == "__main__":
    exit_with(main)
