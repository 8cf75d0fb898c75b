"""The records of a study as the statistics take them: a block is a network under an attack, as in the paper."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from benchmarks.robustness.reporting.frame import PAPER, frame
from benchmarks.robustness.study.records import Record

WORST = "adaptive worst"


def blocks(records: Sequence[Record]) -> pd.DataFrame:
    """Columns ``block``, ``method``, ``accuracy`` in per cent, means over the seeds.

    The paper's columns, and the adaptive worst as an attack like the others.
    """
    runs = frame(records).rename(columns={"worst": WORST})
    names = [name for name in (*PAPER, WORST) if name in runs and not runs[name].isna().all()]
    means = runs.groupby(["data", "model", "method"], sort=False)[names].mean().reset_index()
    long = means.melt(id_vars=["data", "model", "method"], value_vars=names, var_name="attack", value_name="accuracy")
    return pd.DataFrame(
        {
            "block": long.data + " " + long.model + " " + long.attack,
            "method": long.method,
            "accuracy": 100 * long.accuracy,
        }
    ).dropna()
