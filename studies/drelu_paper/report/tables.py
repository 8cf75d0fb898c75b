"""Tables of a study, for the terminal and for documents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from benchmarks.harness.table import MISSING, Table
from dreluop.adaptive.evaluation import BLIND
from studies.drelu_paper.records import Record
from studies.drelu_paper.report.frame import ADAPTIVE, HONEST, by_method, frame
from studies.drelu_paper.sections import PAPER_COLUMNS as PAPER

_SHARES = {*PAPER, *ADAPTIVE, "l2_worst_found", "worst_found", "paper_worst", "zero_gradient"}
_FOUND = {"worst": "worst_found", "l2_worst": "l2_worst_found"}


def table(title: str, records: Sequence[Record], columns: Sequence[str] = ()) -> Table:
    """The paper's columns (empty: all that were measured), and beside them what they are worth.

    A row per model and method, means over the seeds.
    """
    return _table(title, records, PAPER, columns, HONEST)


def adaptive_table(title: str, records: Sequence[Record]) -> Table:
    """What the adaptive worst is made of."""
    return _table(f"{title}: attacks that know of the caps", records, ADAPTIVE, (), {"worst": HONEST["worst"]})


def cost_table(title: str, records: Sequence[Record]) -> Table:
    """Epochs and processor time per run, means over the seeds."""
    runs = frame(records)
    header = ("data", "network", "training", "runs", "epochs", "training, s", "attacks, s")
    measured = ("epochs", "train_seconds", "attack_seconds")
    rows = [
        (*key, _count(group), *(f"{group[name].mean():.0f}" for name in measured)) for key, group in by_method(runs)
    ]
    return Table(f"{title}: processor time per run", header, rows)


def _table(
    title: str, records: Sequence[Record], known: dict[str, str], columns: Sequence[str], beside: dict[str, str]
) -> Table:
    runs = frame(records)
    unknown = [name for name in columns if name not in known]
    if unknown:
        raise ValueError(f"columns: got {unknown[0]!r}; expected some of {', '.join(known)}")
    shown = [name for name in columns or known if name in runs and not runs[name].isna().all()]
    names = [*shown, *(name for name in beside if _belongs(name, runs, shown))]
    header = ("data", "network", "training", "runs", *({**known, **beside}[name] for name in names))
    rows = [(*key, _count(group), *(_cell(name, group) for name in names)) for key, group in by_method(runs)]
    return Table(title, header, rows)


def _belongs(name: str, runs: pd.DataFrame, shown: Sequence[str]) -> bool:
    """The worst in L2 is shown beside CW-L2 only."""
    return name in runs and (name != "l2_worst" or ("cw_l2" in shown and not runs.l2_worst_found.isna().all()))


def _count(group: pd.DataFrame) -> str:
    older = int(group.older.sum())
    return f"{len(group)} ({older} older)" if older else str(len(group))


def _cell(name: str, group: pd.DataFrame) -> str:
    if name not in _FOUND:
        return cell(name, group[name])
    found = cell(_FOUND[name], group[_FOUND[name]])
    return f"no gradient ({found})" if (group.blind > BLIND).any() and found != MISSING else found


def cell(name: str, values: pd.Series[float]) -> str:
    """Mean over the seeds, with the sample's standard deviation where there are several."""
    values = values.dropna()
    if values.empty:
        return MISSING
    mean, spread = values.mean(), values.std()
    if name not in _SHARES:
        return f"{mean:.2g}"
    text = f"{100 * mean:.1f}"
    return text if math.isnan(spread) else f"{text} ± {100 * spread:.1f}"


LEGEND = (
    "Per cent, mean ± standard deviation over the runs (seeds). The first columns are accuracies under the paper's "
    "attacks; CW-L2, on the first cw_samples inputs, counts wrong ones within an L2 distance of 18, its bound, which "
    "any image of another class is within. L2 worst, near: within the smallest bound, 1.5, under CW-L2 and margins. "
    "Adaptive worst: accuracy when each input is attacked by whatever of all L-infinity attacks works on it, those "
    'that know of the caps too; "no gradient": these have none to follow either, and the number in brackets is only '
    "a loose upper bound. Older runs were evaluated before the attacks on margins, so that their adaptive worst may be "
    "too high. Zero gradient: share of the test inputs whose loss has an exactly zero gradient: the first columns "
    "say nothing about them. Live units: capped units per input that are neither off nor at their cap. cap / std: of "
    "a cap to what reaches it; below 0.1 the layer is a step function."
)
