"""Tables that are declared by columns, and targets."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from benchmarks.harness.records import Record
from benchmarks.harness.table import (
    MISSING,
    Column,
    Table,
    Target,
    against,
    left_out,
    markdown,
    matching,
    noise,
    pivot,
    size_name,
    target_table,
)

FRAME = pd.DataFrame(
    [
        {"case": "b", "who": "ours", "ms": 2.0, "kept": 8.0, "shape": [2, 3]},
        {"case": "b", "who": "theirs", "ms": 5.0, "kept": None, "shape": [2, 3]},
        {"case": "a", "who": "ours", "ms": 1.0, "kept": None, "shape": [4]},
    ]
)
COLUMNS = [
    Column("x", "case"),
    Column("ours", "ms", "{:.1f}", {"who": "ours"}),
    Column("theirs", lambda row: row["ms"] * 2, "{:.0f} s", {"who": "theirs"}),
    Column("kept", "kept", "{:.0f}"),
]


def test_a_line_for_each_group_in_the_order_of_the_rows() -> None:
    table = pivot("title", FRAME, ["case"], COLUMNS)
    assert table == Table(
        "title", ("x", "ours", "theirs", "kept"), [("b", "2.0", "10 s", "8"), ("a", "1.0", MISSING, MISSING)]
    )
    assert markdown(table).splitlines()[:3] == ["| x | ours | theirs | kept |", "| --- | --- | --- | --- |",
                                                "| b | 2.0 | 10 s | 8 |"]  # fmt: skip


def test_lines_without_a_known_value_are_left_out() -> None:
    assert [row[0] for row in pivot("title", FRAME, ["case"], COLUMNS, known=("theirs", "kept")).rows] == ["b"]
    assert pivot("title", FRAME.iloc[:0], ["case"], COLUMNS).rows == []


def test_matching_takes_one_value_or_several() -> None:
    assert list(matching(FRAME, {"case": "b", "who": ("ours", "theirs")}).index) == [0, 1]
    assert matching(FRAME, {"case": "b", "who": "nobody"}).empty


def test_another_is_compared_on_the_same_case() -> None:
    frame = FRAME.rename(columns={"who": "implementation"})
    found = against(frame, "theirs", ["case"])
    assert list(found.index) == [0, 1, 2]
    assert found[0] == 2.5 and found[1] == 1 and found[2] != found[2]


def verdicts(**changes: Any) -> list[tuple[float, bool]]:
    target = Target(("", "", ""), {"who": "ours"}, "ms", **{"limit": 2.0, **changes})
    return [(row["measured"], row["met"]) for row in target.verdicts(FRAME).to_dict("records")]


def test_limits_are_lower_or_upper_and_the_worst_comes_first() -> None:
    assert verdicts() == [(1.0, False), (2.0, True)]
    assert verdicts(limit=1.0) == [(1.0, True), (2.0, True)]
    assert verdicts(at_most=True) == [(2.0, True), (1.0, True)]
    assert verdicts(at_most=True, limit=1.9) == [(2.0, False), (1.0, True)]
    assert verdicts(at_most=True, limit=1.9, select=lambda frame: frame["case"] == "a") == [(1.0, True)]


def test_noise_is_subtracted_and_rows_without_the_value_are_left_out() -> None:
    frame = FRAME.assign(noise=[0.2, 0.0, 0.0])
    target = Target(("", "", ""), {"who": "ours"}, "ms", 1.9, at_most=True, noise="noise")
    assert list(target.verdicts(frame)["met"]) == [True, True]
    assert list(Target(("", "", ""), {}, "kept", 0).verdicts(FRAME)["measured"]) == [8.0]


def test_the_table_of_targets() -> None:
    form = "{measured:.1f} ({case})"
    targets = [
        Target(("ours", "x", ">= 2"), {"who": "ours"}, "ms", 2.0, form=form),
        Target(("theirs", "x", ">= 5"), {"who": "theirs"}, "ms", 5.0, form=form),
        Target(("nobody", "x", ">= 5"), {"who": "nobody"}, "ms", 5.0, form=form),
    ]
    table = target_table(("a", "b", "c"), targets, FRAME, " (note)")
    assert table.header == ("a", "b", "c", "worst", "best", "met")
    assert [row[3:] for row in table.rows] == [
        ("1.0 (a)", "2.0 (b)", "**missed** in 1 of 2 (note)"),
        ("5.0 (b)", "5.0 (b)", "yes, 1 of 1 (note)"),
        (MISSING, MISSING, "not measured"),
    ]


def test_facts() -> None:
    frame = pd.DataFrame({"ms": [100.0, 100.0, 50.0], "q1_ms": [90.0, 99.0, 50.0], "q3_ms": [110.0, 101.0, 51.0]})
    assert noise(frame, "a floor") == "noise (distance of a floor's quartiles): 2%, at most 20%"
    assert noise(frame.iloc[:0], "a floor") == "nothing measured"
    record = Record([{"settings": {"quick": True}}], failures=[{}])
    assert left_out(record, ["a", "b", "c"], "quick run") == [
        "quick run", "not all cases: 3 missing", "1 implementations not measured"
    ]  # fmt: skip
    assert left_out(Record([{"settings": {}}]), []) == []


@pytest.mark.parametrize(("size", "name"), [(2**10, "1 KB"), (2**24, "16 MB"), (2**30, "1 GB"), (12, "12 B")])
def test_sizes(size: int, name: str) -> None:
    assert size_name(size) == name
