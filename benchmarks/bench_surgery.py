"""Surgery on whole libraries of networks, and what the saturation monitor costs.

`python -m benchmarks surgery-sweep` operates on torchvision's classifiers, `surgery-zoo` on networks of timm,
transformers and others (the extra ``zoo``), and `surgery-monitor` times the monitor. ``--cases 'timm/resnet*'``
chooses.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.attempts import failure
from benchmarks.harness.cli import Bench, Run
from benchmarks.harness.records import Named, Record
from benchmarks.harness.table import MISSING, Column, Table, facts, pivot
from benchmarks.surgery import monitor, sweep
from benchmarks.surgery.zoo import networks
from benchmarks.surgery.zoo.networks import Case
from benchmarks.surgery.zoo.row import check_apart

FILES = ("surgery-sweep.jsonl", "surgery-zoo*.jsonl")
EVERY = 20  # the monitor's default
ROUNDS = 60  # steps of each kind
FEW = 3  # networks, or rounds, of a quick run
LIBRARIES = ("torchvision", "timm", "transformers", "segmentation_models_pytorch")

Rows = list[dict[str, Any]]


def _first(cases: Sequence[Any], settings: Mapping[str, Any]) -> Sequence[Any]:
    return cases[:FEW] if settings.get("quick") else cases


def sweep_cases(kind: str, settings: Mapping[str, Any]) -> Sequence[Named]:
    return _first([Named(name) for name in sweep.names()], settings)


def sweep_one(case: Named, with_: Run) -> Rows:
    row = sweep.check(case.label)
    return [{**asdict(row), "wrong": row.failure}]


def zoo_cases(kind: str, settings: Mapping[str, Any]) -> Sequence[Case]:
    return _first(networks.cases(), settings)


def zoo_one(case: Case, with_: Run) -> Rows:
    library = case.library
    if importlib.util.find_spec(library) is None:
        return [failure(ModuleNotFoundError(f"{library} is not installed: pip install -e '.[zoo]'"))]
    # Imported once here, it need not be in every fork.
    importlib.import_module(library)
    row = check_apart(case)
    return [{**asdict(row), "wrong": row.failure}]


def monitor_cases(kind: str, settings: Mapping[str, Any]) -> Sequence[Named]:
    return [Named(name) for name in monitor.CASES]


def monitor_one(case: Named, with_: Run) -> Rows:
    cost = monitor.measure(case.label, FEW if with_.quick else ROUNDS)
    return [{**asdict(cost), "every": EVERY, "share": cost.share(EVERY)}]


def _versions() -> dict[str, str]:
    installed = [name for name in LIBRARIES if importlib.util.find_spec(name) is not None]
    return {name: importlib.import_module(name).__version__ for name in installed}


def _any_wrong(record: Record, output: Path | None) -> int:
    return int(any(row["wrong"] for row in record.rows))


def _columns(*names: str) -> list[Column]:
    return [Column(name.replace("_", " "), name) for name in names]


def _tables(title: str, columns: Sequence[Column]) -> Callable[[Record], list[Table]]:
    return lambda record: [pivot(title, record.frame(), ["name"], columns)]


def headline(record: Record) -> str:
    return facts(record)


_SHARED = ("replaced", "fused", "remaining", "equal")
SWEEP = Bench(
    "surgery-sweep", "Operate on torchvision's classifiers, and compare them with the originals.", sweep_cases,
    sweep_one, (), headline,
    _tables("Sweep", _columns("name", "calls_train", "calls_eval", *_SHARED, "caps_with_gradient", "seconds", "wrong")),
    devices=("cpu",), extra_versions=_versions, finish=_any_wrong,
)  # fmt: skip
ZOO = Bench(
    "surgery-zoo", "Operate on networks of timm, transformers and others, and compare them with the originals.",
    zoo_cases, zoo_one, (), headline,
    _tables(
        "Zoo", _columns("name", "calls", "sites", *_SHARED, "remaining_independent", "gradients", "seconds", "wrong")
    ),
    devices=("cpu",), extra_versions=_versions, finish=_any_wrong,
)  # fmt: skip
MONITOR = Bench(
    "surgery-monitor", "Time what the saturation monitor adds to a training step.", monitor_cases, monitor_one,
    (), headline,
    _tables(
        "Monitor",
        [
            Column("network", "name"),
            Column("step, CPU ms", "plain", "{:.3g}"),
            Column("monitor idle", "idle", "{:.3g}"),
            Column("measuring", "measured", "{:.3g}"),
            Column(f"cost at every={EVERY}", "share", "{:.2%}"),
        ],
    ),
    devices=("cpu",),
)  # fmt: skip
BENCHES = {bench.name: bench for bench in (SWEEP, ZOO, MONITOR)}


LEGEND = (
    "Calls: ReLU calls that run in the original, in the mode with more. Remain: calls that run outside of a D-ReLU "
    "after surgery. In silence: those of them that the report does not name. Equal: outputs bit for bit, and "
    "gradients but for rounding, of the networks that have a ReLU and were run. Seconds: median and largest of the "
    "surgery, in the zoo with its run on an example."
)
_HEADER = (
    "library", "networks", "with ReLU", "calls", "sites", "replaced", "fused", "remain", "in silence", "equal outputs",
    "equal gradients", "errors", "seconds",
)  # fmt: skip


def library_table(records: Sequence[Record]) -> Table:
    """A row for each library of the zoo, and one for torchvision's classifiers."""
    groups: dict[str, Rows] = defaultdict(list)
    for record in records:
        for row in record.rows:
            library, slash, _ = row["key"]["case"].partition("/")
            groups[library if slash else "torchvision, classifiers"].append(row)
    return Table("Surgery", _HEADER, [_cells(library, rows) for library, rows in groups.items()])


def library_headline(records: Sequence[Record]) -> str:
    """The versions of the libraries, the date and the commit of each run."""
    facts = []
    for run in (run for record in records for run in record.runs):
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        facts.append(f"{run['date'][:10]}, {run['commit']['hash'][:7]}: {versions}")
    return "; ".join(facts)


def _cells(library: str, rows: Rows) -> tuple[str, ...]:
    used = [row for row in rows if _calls(row)]
    silent = [max(0, (row.get("remaining_independent") or 0) - (row.get("remaining") or 0)) for row in rows]
    seconds = sorted(row["seconds"] for row in rows if row["seconds"] is not None)
    remain = [row.get("remaining_independent", row.get("remaining")) or 0 for row in rows]
    return (
        library, str(len(rows)), str(len(used)), str(sum(map(_calls, rows))),
        *(str(sum(row.get(name, row.get("found")) or 0 for row in rows)) for name in ("sites", "replaced", "fused")),
        str(sum(remain)), str(sum(silent)), _share(used, "equal"), _share(used, "gradients"),
        str(sum(bool(row.get("error")) for row in rows)),
        f"{seconds[len(seconds) // 2]:.2f} / {seconds[-1]:.2f}" if seconds else MISSING,
    )  # fmt: skip


def _calls(row: Mapping[str, Any]) -> int:
    return max(row.get("calls") or 0, row.get("calls_train") or 0, row.get("calls_eval") or 0)


def _share(rows: Rows, name: str) -> str:
    known = [row[name] for row in rows if row.get(name) is not None]
    return f"{sum(known)} of {len(known)}" if known else MISSING
