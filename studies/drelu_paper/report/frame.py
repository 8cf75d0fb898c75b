"""The records of a study as a table of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from dreluop.adaptive.evaluation import BLIND
from studies.drelu_paper.records import Record, is_older

KEYS = ["data", "model", "method"]
# After the name of a data set whose training part is mixed with generated images.
GENERATED = " + generated"

# Beside the paper's columns in every table and picture.
HONEST = {
    "l2_worst": "L2 worst, near",
    "worst": "adaptive worst",
    "zero_gradient": "zero gradient",
    "live_units": "live units",
    "cap_over_std": "cap / std",
}
# What the adaptive worst is made of, beside the paper's attacks.
ADAPTIVE = {
    "straight_through": "straight-through",
    "soft": "soft",
    "margin": "margins",
    "uncapped": "no caps",
    "apgd_targeted": "APGD-T",
    "transfer": "transfer",
}
# By what the statistics rank a study.
BASIS = "adaptive worst, a block per network and seed"


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """A row per run: accuracies and shares in [0, 1], NaN where a run has no such number.

    CW-L2 is the accuracy within the largest of the L2 bounds, the L2 worst that within the smallest. Where the gradient
    is hidden from the adaptive attacks too, ``worst`` and ``l2_worst`` are NaN, so that nothing takes them for a
    result; ``worst_found`` and ``l2_worst_found`` are what was found nevertheless. ``older`` marks runs that an
    earlier revision of the attacks evaluated.

    Raises:
        ValueError: two runs of one seed have the same data, model and method by name, so that a mean over the seeds
            would mix them.
    """
    runs = pd.DataFrame([_row(record) for record in records])
    doubled = runs[runs.duplicated([*KEYS, "seed"])] if len(runs) else runs
    if len(doubled):
        raise ValueError(f"records: got two of {', '.join(map(str, doubled[[*KEYS, 'seed']].iloc[0]))}; expected one")
    return runs


def _row(record: Record) -> dict[str, Any]:
    recipe, evaluation = record["recipe"], record["evaluation"]
    caps = evaluation["caps"] or {}
    capped = recipe["method"] == "drelu"
    bounds = evaluation["cw"]
    l2_worst = evaluation.get("l2_worst")
    l2_worst = math.nan if l2_worst is None else l2_worst
    hidden = is_blind(evaluation)
    return {
        "data": recipe["data"]["name"] + (GENERATED if recipe["data"]["generated"] else ""),
        "model": recipe["model"] + ("" if recipe["place"] == "head" else f", {recipe['place']}"),
        "method": record["label"],
        "kind": recipe["method"],
        "seed": recipe["seed"],
        "balancer": recipe["training"]["balancer"] if capped else math.nan,
        "init": recipe["init"] if capped and recipe["calibrate"] is None else math.nan,
        **evaluation["accuracy"],
        "cw_l2": bounds[max(bounds, key=float)] if bounds else math.nan,
        "l2_worst": math.nan if hidden else l2_worst,
        "l2_worst_found": l2_worst,
        "paper_worst": evaluation["paper_worst"],
        "worst": math.nan if hidden else evaluation["worst"],
        "worst_found": evaluation["worst"],
        "blind": evaluation.get("blind", math.nan),
        "older": is_older(record),
        "zero_gradient": evaluation["zero_gradient"],
        "live_units": caps.get("live_units", math.nan),
        "cap_over_std": caps.get("cap_over_std", math.nan),
        "epochs": record["warm_up"]["epochs"] + record["training"]["epochs"],
        "train_seconds": record["warm_up"]["cpu_seconds"] + record["training"]["cpu_seconds"],
        "attack_seconds": sum(evaluation["cpu_seconds"].values()),
    }


def is_blind(evaluation: dict[str, Any]) -> bool:
    """Whether the gradient is hidden from the adaptive attacks too, so that their results say nothing."""
    return bool(evaluation.get("blind", math.nan) > BLIND)


def older_note(records: Sequence[Record]) -> str:
    """How many of them an earlier revision of the attacks evaluated, for the end of a title; empty for none."""
    older = sum(map(is_older, records))
    return f" ({older} older)" if older else ""


def by_method(runs: pd.DataFrame) -> pd.core.groupby.DataFrameGroupBy[Any]:
    """Groups of the runs that differ in their seed only, in the order of the study."""
    return runs.groupby(KEYS, sort=False)


def blocks(records: Sequence[Record]) -> pd.DataFrame:
    """Columns ``block``, ``method``, ``accuracy``: the adaptive worst in per cent, for the statistics.

    The paper's attacks are left out. They cannot move an input whose gradient is zero, so a ranking by them puts the
    network with the most such inputs first.
    """
    runs = frame(records)
    block = runs.data + " " + runs.model + ", seed " + runs.seed.astype(str)
    return pd.DataFrame({"block": block, "method": runs.method, "accuracy": 100 * runs.worst})


def masked(records: Sequence[Record]) -> str:
    """The methods with inputs of zero gradient, and their mean share, largest first; empty where there are none."""
    shares = frame(records).groupby("method", sort=False).zero_gradient.mean().sort_values(ascending=False)
    return ", ".join(f"{method} {share:.1%}" for method, share in shares.items() if share > 0)
