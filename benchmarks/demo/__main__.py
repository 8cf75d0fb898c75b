"""``python -m benchmarks.demo``: train, attack, time, draw. At most 4 minutes on 2 cores."""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch
from rich.console import Console

import dreluop
from benchmarks.demo import experiment, report, timing
from benchmarks.demo.pictures import draw_timing, draw_training
from benchmarks.harness.entry import exit_with
from benchmarks.harness.machine import require_native
from benchmarks.robustness.data import Digits, Split, load_digits

TIMING_THREADS = 2
QUICK_EPOCHS = 3
QUICK_SIZES = (640, 100, 200)


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    epochs = options.epochs
    if epochs is None:
        epochs = QUICK_EPOCHS if options.quick else experiment.EPOCHS
    if epochs <= experiment.WARM_UP_EPOCHS:
        _parser().error(f"--epochs: got {epochs}; expected more than the {experiment.WARM_UP_EPOCHS} of the warm-up")
    backend = require_native(_parser())
    started = time.perf_counter()
    # Steps this small gain nothing from a second thread, and on a busy machine lose a lot: two wait for each other.
    torch.set_num_threads(1)
    console = Console()
    console.print(
        f"dreluop {dreluop.__version__}, torch {torch.__version__}, {platform.machine()}, {backend} kernels",
        highlight=False,
    )

    digits = _first(load_digits(), QUICK_SIZES) if options.quick else load_digits()
    console.print(
        f"Training a dense network with a D-ReLU head and its ReLU baseline on {len(digits.train.x)} real digits, "
        f"{epochs} epochs each.",
        highlight=False,
    )
    results = experiment.run(digits, epochs)
    report.print_results(console, results, len(digits.test.x))

    with console.status("Timing capped_relu (about 20 seconds)"):
        rows = timing.rows(TIMING_THREADS, options.quick)
    report.print_timing(console, rows, TIMING_THREADS)

    training_picture, timing_picture = options.output / "training.png", options.output / "timing.png"
    draw_training(results.drelu, results.relu, training_picture)
    draw_timing(rows, TIMING_THREADS, timing_picture)
    console.print(f"Pictures: {training_picture} and {timing_picture}", highlight=False, soft_wrap=True)
    console.print(f"Done in {time.perf_counter() - started:.0f} s.", highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--epochs", type=int, help=f"of training per network (default {experiment.EPOCHS})")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for the pictures")
    parser.add_argument("--quick", action="store_true", help="a few seconds: fewer digits and epochs, tiny timing")
    return parser


def _first(digits: Digits, sizes: tuple[int, int, int]) -> Digits:
    return Digits(*(Split(split.x[:size], split.y[:size]) for split, size in zip(digits, sizes, strict=True)))


if __name__ == "__main__":
    exit_with(main)
