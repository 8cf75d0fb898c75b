"""The records of a study as the statistics take them: a block is a network and a seed."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from studies.drelu_paper.records import Record
from studies.drelu_paper.report.frame import frame

BASIS = "adaptive worst, a block per network and seed"


def blocks(records: Sequence[Record]) -> pd.DataFrame:
    """Columns ``block``, ``method``, ``accuracy``: the adaptive worst in per cent.

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
