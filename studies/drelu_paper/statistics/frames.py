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
    """One row per block and one column per method, both in the order in which they first come.

    Args:
        results: has the columns ``block``, ``method`` and ``accuracy``, one row per measured cell; other columns are
            not looked at. A cell without a row, or with NaN, is NaN.

    Raises:
        TypeError: ``results`` is no frame.
        ValueError: a column or every row is missing, a block or a method has no name, or a cell comes twice: average
            several seeds first, as how they are to be averaged is not known here.
    """
    _check_frame(results, "results")
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
        missing: what to do where a cell is missing: ``"error"``, or ``"drop"`` to leave its whole block out.
        name: what messages call the frame.

    Raises:
        TypeError: ``accuracies`` is no frame, or not of numbers.
        ValueError: a cell is missing and ``missing`` is ``"error"``; a cell is infinite; a block or a method comes
            twice; less than two of either are left; or every block ties all methods, which ranks nothing.
    """
    _check_frame(accuracies, name)
    if missing not in MISSING:
        raise ValueError(f"missing: got {missing!r}; expected {' or '.join(map(repr, MISSING))}")
    for kind, labels in (("method", accuracies.columns), ("block", accuracies.index)):
        if labels.has_duplicates:
            raise ValueError(f"{name}: got {kind} {block_name(labels[labels.duplicated()][0])} twice; expected once")
    for method, dtype in accuracies.dtypes.items():
        if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype):
            raise TypeError(f"{name}: got {dtype} for {method}; expected numbers")
    accuracies = accuracies.astype(float)
    _check_cells(accuracies, missing, name)
    whole = accuracies.notna().all(axis=1)
    kept = accuracies[whole]
    if kept.shape[0] < 2 or kept.shape[1] < 2:
        raise ValueError(f"{name}: got {kept.shape[0]} whole blocks of {kept.shape[1]} methods; expected 2 of each")
    if (kept.nunique(axis=1) == 1).all():
        raise ValueError(f"{name}: got the same for all methods in every block; expected some that differ")
    return kept, tuple(map(block_name, accuracies.index[~whole]))


def _check_cells(accuracies: pd.DataFrame, missing: Missing, name: str) -> None:
    for wrong, what, allowed in (
        (accuracies.isin([math.inf, -math.inf]), "an infinite value", False),
        (accuracies.isna(), "no value", missing == "drop"),
    ):
        places = np.argwhere(wrong.to_numpy())
        if len(places) and not allowed:
            block, method = accuracies.index[places[0][0]], accuracies.columns[places[0][1]]
            hint = "" if what != "no value" else '; missing="drop" leaves such blocks out'
            raise ValueError(f"{name}: got {what} in {block_name(block)}, {method}; expected a finite number{hint}")


def block_name(block: Any) -> str:
    """A block's label as text."""
    return " / ".join(map(str, block)) if isinstance(block, tuple) else str(block)


def _check_frame(frame: object, name: str) -> None:
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"{name}: got {type(frame).__name__}; expected a pandas DataFrame")
