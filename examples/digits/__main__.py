"""``python -m examples.digits``: train, attack, time, draw. At most 4 minutes on 2 cores."""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch
from rich.console import Console

import dreluop
from benchmarks.harness.entry import exit_with
from benchmarks.harness.machine import require_native
from examples.digits import experiment, report, timing
from examples.digits.pictures import draw_timing, draw_training

TIMING_THREADS = 2
QUICK_EPOCHS = 3


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.digits", description=__doc__)
    parser.add_argument("--epochs", type=int, help=f"of training per network (default {experiment.EPOCHS})")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for the pictures")
    parser.add_argument("--quick", action="store_true", help="a few seconds: fewer digits and epochs, tiny timing")
    options = parser.parse_args(arguments)
    epochs = options.epochs
    if epochs is None:
        epochs = QUICK_EPOCHS if options.quick else experiment.EPOCHS
    if epochs <= experiment.WARM_UP_EPOCHS:
        parser.error(f"--epochs: got {epochs}; expected more than the {experiment.WARM_UP_EPOCHS} of the warm-up")
    backend = require_native(parser)
    started = time.perf_counter()
    # On a busy machine two threads wait for each other in steps this small.
    torch.set_num_threads(1)
    console = Console(highlight=False)
    console.print(
        f"dreluop {dreluop.__version__}, torch {torch.__version__}, {platform.machine()}, {backend} kernels",
    )

    digits = experiment.load(options.quick)
    console.print(
        f"Training a dense network with a D-ReLU head and its ReLU baseline on {len(digits.train.x)} real digits, "
        f"{epochs} epochs each."
    )
    results = experiment.run(digits, epochs)
    report.print_results(console, results, len(digits.test.x))

    with console.status("Timing capped_relu (about 20 seconds)"):
        rows = timing.rows(TIMING_THREADS, options.quick)
    report.print_timing(console, rows, TIMING_THREADS)

    training_picture, timing_picture = options.output / "training.png", options.output / "timing.png"
    draw_training(results.drelu, results.relu, training_picture)
    draw_timing(rows, TIMING_THREADS, timing_picture)
    console.print(f"Pictures: {training_picture} and {timing_picture}", soft_wrap=True)
    console.print(f"Done in {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    exit_with(main)
