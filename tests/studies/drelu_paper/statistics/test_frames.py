"""Results as blocks x methods: order, missing cells, bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from studies.drelu_paper.statistics.frames import blocks_by_methods, complete

RESULTS = pd.DataFrame(
    [("z", "ours", 3.0, 0), ("z", "a", 2.0, 1), ("b", "a", 5.0, 2), ("b", "ours", 4.0, 3), ("c", "a", 1.0, 4)],
    columns=["block", "method", "accuracy", "other"],
)
WIDE = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [2.0, 2.0, 1.0]}, index=["x", "y", "z"])


def test_order_is_that_of_the_results_and_a_missing_row_is_nan() -> None:
    found = blocks_by_methods(RESULTS)
    assert list(found.index) == ["z", "b", "c"]
    assert list(found.columns) == ["ours", "a"]
    np.testing.assert_array_equal(found.to_numpy(), [[3.0, 2.0], [4.0, 5.0], [math.nan, 1.0]])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda r: r.drop(columns="block"),
            ValueError,
            r"results: got columns \['method', 'accuracy', 'other'\]; expected block too",
        ),
        (lambda r: r.head(0), ValueError, "results: got no row"),
        (lambda r: r.assign(method=None), ValueError, "results: got a row without block or method"),
        (lambda r: pd.concat([r, r.head(1)]), ValueError, "results: got several rows of z, ours; expected one"),
    ],
)
def test_bad_results(change: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        blocks_by_methods(change(RESULTS))


def test_a_missing_cell_is_an_error_or_its_block_is_left_out_by_name() -> None:
    wide = WIDE.copy()
    wide.index = pd.MultiIndex.from_tuples([("net", "x"), ("net", "y"), ("net", "z")])
    wide.loc[("net", "y"), "b"] = math.nan
    before = wide.copy()
    with pytest.raises(ValueError, match=r'accuracies: got no value in net / y, b; .* missing="drop" leaves'):
        complete(wide)
    kept, left_out = complete(wide, "drop")
    assert left_out == ("net / y",)
    assert kept.to_numpy().tolist() == [[1, 2], [3, 1]]
    pd.testing.assert_frame_equal(wide, before)


@pytest.mark.parametrize(
    ("change", "missing", "error", "message"),
    [
        (lambda w: w.rename(columns={"b": "a"}), "error", ValueError, "got method a twice"),
        (lambda w: w.rename(index={"y": "x"}), "error", ValueError, "got block x twice"),
        (lambda w: w.astype({"b": "str"}), "error", TypeError, "got str for b; expected numbers"),
        (lambda w: w > 1, "error", TypeError, "got bool for a; expected numbers"),
        (lambda w: w.replace(3.0, math.inf), "drop", ValueError, "got an infinite value in z, a"),
        (lambda w: w[["a"]], "error", ValueError, "got 3 whole blocks of 1 methods; expected 2 of each"),
        (lambda w: w.replace(2.0, math.nan), "drop", ValueError, "got 1 whole blocks of 2 methods"),
        (lambda w: w.assign(b=w["a"]), "error", ValueError, "got the same for all methods in every block"),
    ],
)
def test_bad_accuracies(change: Any, missing: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        complete(change(WIDE), missing)
