from __future__ import annotations

from typing import Any

import pytest

from benchmarks.harness import implementations as c
from benchmarks.kernels.suite import COLD_MODE, FORWARD, HOT_MODE
from benchmarks.scaling import tables
from benchmarks.scaling.cases import CAPS, EAGER_MODE, SIZE
from benchmarks.scaling.series import line, overhead_ends, styles

PROCESSOR = {"name": "A processor", "cores": 2}
GPU = {"name": "A gpu", "type": "cuda"}


def row(x_bytes: int, ms: float, **changes: Any) -> dict[str, Any]:
    made = {"axis": SIZE, "x_bytes": x_bytes, "caps": 64, "dtype": "float32", "threads": 2, "mode": HOT_MODE}
    return {**made, "implementation": c.OURS.name, "pass": FORWARD, "ms": ms, "fraction_of_copy": 0.5, **changes}


def document(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    made = {"device": PROCESSOR, "cache_bytes": 2**25, "versions": {"torch": "2", "dreluop": "1"}, "commit": None}
    return {**made, "date": "2026-01-01", "quick": False, "complete": True, "failures": [], "rows": rows, **changes}


def times(made: dict[str, Any], which: int = 0, axis: str = SIZE) -> dict[int, float]:
    found = line(made, axis, styles(made)[which], c.OURS.name, FORWARD, "float32")
    return {platform: one["ms"] for platform, one in found.items()}


def test_cold_stands_before_hot_and_places_are_in_order() -> None:
    cold = row(2**20, 3, mode=COLD_MODE)
    for rows in ([row(2**20, 2), cold], [cold, row(2**20, 2)]):
        assert list(times(document(*rows, row(2**10, 1))).items()) == [(2**10, 1), (2**20, 3)]


def test_threads_and_the_host_are_styles_of_their_own() -> None:
    assert times(document(row(1, 2), row(1, 4, threads=1))) == {1: 2}
    assert times(document(row(1, 2), row(1, 4, threads=1)), 1) == {1: 4}
    rows = row(1, 2, threads=None), row(1, 4, threads=None, mode=EAGER_MODE)
    assert times(document(*rows, device=GPU)) == {1: 2}
    assert times(document(*rows, device=GPU), 1) == {1: 4}


def test_a_line_is_of_one_axis_implementation_pass_and_dtype() -> None:
    others = [{"implementation": c.CLAMP.name}, {"pass": "backward"}, {"dtype": "float64"}, {"axis": CAPS}]
    made = document(row(1, 2), *(row(1, 9, **{**change, "mode": COLD_MODE}) for change in others))
    assert times(made) == {1: 2}
    assert times(made, axis=CAPS) == {64: 9}


@pytest.mark.parametrize(
    ("ms", "end"), [([1, 1.5, 2, 8], 2**14), ([1, 1.9, 1.9, 1.9], None), ([1, 5, 1, 1], 2**12), ([1], None), ([], None)]
)
def test_the_overhead_ends_where_a_call_takes_twice_as_long(ms: list[float], end: int | None) -> None:
    assert overhead_ends({2 ** (10 + 2 * i): {"ms": value} for i, value in enumerate(ms)}) == end


def test_table() -> None:
    made = document(
        row(2**10, 0.005),
        row(2**20, 0.02),
        row(2**10, 0.01, implementation=c.RELU_MINIMUM.name),
        row(2**20, 0.1, implementation=c.RELU_MINIMUM.name),
        *(row(2**26, ms, axis=CAPS, caps=caps) for caps, ms in ((1, 2), (4, 3), (16, 2.5))),
    )
    table = tables.table(made)
    measured = "5", "1 MB", "0.02 (1 MB)", "50%", "5.00 (1 MB)", "2.00 (1 KB)", "1.50"
    assert table.rows == [("2 threads", "fp32", "forward", *measured)]
    assert len(table.header) == len(table.rows[0])
    assert tables.table(document()).rows == []


def test_headline() -> None:
    text = tables.headline(document(complete=False, quick=True, failures=[1]))
    assert text.startswith("A processor; last-level cache 32 MB; torch 2, dreluop 1 (no commit known); 2026-01-01")
    assert "quick run" in text and "not all points" in text and "1 implementations not measured" in text
