"""Results as a frame of blocks (rows) and methods (columns)."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pandas as pd

COLUMNS = ("block", "method", "accuracy")
Missing = Literal["error", "drop"]
MISSING: tuple[Missing, ...] = ("error", "drop")


def blocks_by_methods(results: pd.DataFrame) -> pd.DataFrame:
    """A row per block and a column per method, both in the order in which they first come; NaN where a cell is missing.

    Args:
        results: has the columns ``block``, ``method`` and ``accuracy``, one row per measured cell.

    Raises:
        ValueError: a column or every row is missing, a block or a method has no name, or a cell comes twice: average
            several seeds first, as how they are to be averaged is not known here.
    """
    lacking = [name for name in COLUMNS if name not in results.columns]
    if lacking:
        raise ValueError(f"results: got columns {list(results.columns)}; expected {', '.join(lacking)} too")
    if not len(results):
        raise ValueError("results: got no row; expected one per measured cell")
    if results[["block", "method"]].isna().any(axis=None):
        raise ValueError("results: got a row without block or method; expected both in every row")
    doubled = results[results.duplicated(["block", "method"])]
    if len(doubled):
        block, method = doubled.iloc[0][["block", "method"]]
        raise ValueError(f"results: got several rows of {block_name(block)}, {method}; expected one per cell")
    wide = results.pivot(index="block", columns="method", values="accuracy")
    return wide.loc[results["block"].unique(), results["method"].unique()]


def complete(
    accuracies: pd.DataFrame, missing: Missing = "error", name: str = "accuracies"
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The blocks in which every method has an accuracy, as float64, and the names of the others.

    Args:
        accuracies: blocks x methods; any finite numbers of which larger is better, NaN where a cell is missing.
        missing: where a cell is missing: ``"error"``, or ``"drop"`` to leave its whole block out.
        name: what messages call the frame.

    Raises:
        TypeError: the frame is not of numbers.
        ValueError: a cell is missing and ``missing`` is ``"error"``; a cell is infinite; a block or a method comes
            twice; less than two of either are left; or every block ties all methods, which ranks nothing.
    """
    for kind, labels in (("method", accuracies.columns), ("block", accuracies.index)):
        if labels.has_duplicates:
            raise ValueError(f"{name}: got {kind} {block_name(labels[labels.duplicated()][0])} twice; expected once")
    for method, dtype in accuracies.dtypes.items():
        if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype):
            raise TypeError(f"{name}: got {dtype} for {method}; expected numbers")
    accuracies = accuracies.astype(float)
    _refuse(accuracies.isin([math.inf, -math.inf]), f"{name}: got an infinite value in", "a finite number")
    if missing == "error":
        hint = 'a finite number; missing="drop" leaves such blocks out'
        _refuse(accuracies.isna(), f"{name}: got no value in", hint)
    whole = accuracies.notna().all(axis=1)
    kept = accuracies[whole]
    if kept.shape[0] < 2 or kept.shape[1] < 2:
        raise ValueError(f"{name}: got {kept.shape[0]} whole blocks of {kept.shape[1]} methods; expected 2 of each")
    if (kept.nunique(axis=1) == 1).all():
        raise ValueError(f"{name}: got the same for all methods in every block; expected some that differ")
    return kept, tuple(map(block_name, accuracies.index[~whole]))


def _refuse(wrong: pd.DataFrame, got: str, expected: str) -> None:
    places = np.argwhere(wrong.to_numpy())
    if len(places):
        block, method = wrong.index[places[0][0]], wrong.columns[places[0][1]]
        raise ValueError(f"{got} {block_name(block)}, {method}; expected {expected}")


def block_name(block: Any) -> str:
    """A block's label as text."""
    return " / ".join(map(str, block)) if isinstance(block, tuple) else str(block)
