from __future__ import annotations

from typing import Any

import pytest

from benchmarks.harness import implementations as c
from benchmarks.harness.machine import Document, new_document
from benchmarks.harness.table import MISSING
from benchmarks.kernels import suite, tables
from benchmarks.kernels.targets import TARGETS, Target, evaluate


def row(implementation: str, pass_: str, ms: float, floor_ms: float, **changes: Any) -> suite.Row:
    made: Any = {
        **{"case": "images", "granularity": "channel", "memory_format": "contiguous", "shape": [32, 64, 92, 92]},
        **{"dtype": "float32", "x_bytes": suite.LARGE, "pass": pass_, "implementation": implementation, "ms": ms},
        **{"q1_ms": ms, "q3_ms": ms, "min_ms": ms, "samples": 5, "calls_per_sample": 1, "page_faults": 0.0},
        **{"mode": "cold", "threads": 2, "saved_bytes": None, "saves_x": None, "saves_y": None},
        **{"floor": suite.FLOORS[pass_], "floor_ms": floor_ms, "ratio_to_floor": ms / floor_ms},
        **{"min_bytes": 1, "gb_per_s": 1.0},
    }
    return made | changes


def ours(pass_: str, ms: float, **changes: Any) -> suite.Row:
    return row(c.OURS.name, pass_, ms, 100.0, **changes)


FORWARD = Target(suite.FORWARD, c.CLONE, 1.05)
EAGER = Target(suite.BOTH, c.RELU_MINIMUM.name, 5, ("float32",))


@pytest.mark.parametrize(("ms", "met"), [(104.0, True), (105.0, True), (105.1, False)])
def test_floor_limits_are_upper(ms: float, met: bool) -> None:
    (verdict,) = evaluate(FORWARD, [ours(suite.FORWARD, ms)])
    assert verdict.measured == ms / 100
    assert verdict.met is met


@pytest.mark.parametrize(("ms", "met"), [(501.0, True), (500.0, True), (499.0, False)])
def test_speed_up_limits_are_lower(ms: float, met: bool) -> None:
    (verdict,) = evaluate(EAGER, [ours(suite.BOTH, 100.0), row(c.RELU_MINIMUM.name, suite.BOTH, ms, 100.0)])
    assert verdict.measured == ms / 100
    assert verdict.met is met


def test_a_target_applies_to_its_pass_sizes_and_dtypes_only() -> None:
    assert FORWARD.applies_to(ours(suite.FORWARD, 1.0, dtype="bfloat16"))
    assert not FORWARD.applies_to(ours(suite.BACKWARD, 1.0))
    assert not FORWARD.applies_to(ours(suite.FORWARD, 1.0, x_bytes=suite.LARGE - 1))
    assert not FORWARD.applies_to(row(c.CLAMP.name, suite.FORWARD, 1.0, 1.0))
    assert not EAGER.applies_to(ours(suite.BOTH, 1.0, dtype="bfloat16"))
    small = Target(suite.BOTH, c.RELU_MINIMUM.name, 5, small=True)
    assert small.applies_to(ours(suite.BOTH, 1.0, shape=list(suite.SMALL), x_bytes=1))
    assert not small.applies_to(ours(suite.BOTH, 1.0))


def test_a_speed_up_is_over_the_same_input() -> None:
    other = {"dtype": "bfloat16"}, {"case": "other"}
    rows = [row(c.RELU_MINIMUM.name, suite.BOTH, 900.0, 100.0, **changes) for changes in other]
    assert evaluate(EAGER, [ours(suite.BOTH, 100.0), *rows]) == []


def test_the_worst_comes_first() -> None:
    rows = [ours(suite.FORWARD, ms, case=str(ms)) for ms in (90.0, 120.0, 100.0)]
    verdicts = evaluate(FORWARD, rows)
    assert [verdict.measured for verdict in verdicts][:: len(verdicts) - 1] == [1.2, 0.9]
    rows = [ours(suite.BOTH, 100.0, case="a"), ours(suite.BOTH, 100.0, case="b")]
    rows += [
        row(c.RELU_MINIMUM.name, suite.BOTH, 100.0 * times, 1.0, case=case) for case, times in (("a", 4), ("b", 7))
    ]
    verdicts = evaluate(EAGER, rows)
    assert [verdict.measured for verdict in verdicts][:: len(verdicts) - 1] == [4, 7]


def document(rows: list[suite.Row], threads: int = 2) -> Document:
    return {**new_document(threads, quick=False), "rows": rows}


def met_column(made: Document) -> dict[str, str]:
    return {f"{cells[0]}; {cells[1]}": cells[-1] for cells in tables.target_table(made).rows}


def test_the_table_says_missed_where_missed() -> None:
    rows = [ours(suite.FORWARD, 104.0, case="a"), ours(suite.FORWARD, 110.0, case="b"), ours(suite.IN_PLACE, 100.0)]
    found = met_column(document(rows))
    assert len(found) == len(TARGETS)
    assert found["forward against clone; >= 64 MiB"] == "**missed** in 1 of 2"
    assert found["in-place against copy_; >= 64 MiB"] == "yes, 1 of 1"
    assert found["backward against clone; >= 64 MiB"] == "not measured"


def test_the_table_says_where_other_threads_were_used() -> None:
    found = met_column(document([ours(suite.FORWARD, 104.0, threads=1)], threads=1))
    assert found["forward against clone; >= 64 MiB"] == "yes, 1 of 1 (meant for 2 threads)"


def test_targets_are_not_for_the_rows_on_one_thread() -> None:
    rows = [ours(suite.FORWARD, 104.0), ours(suite.FORWARD, 300.0, threads=1, case="images, 1 thread")]
    found = met_column(document(rows))
    assert found["forward against clone; >= 64 MiB"] == "yes, 1 of 1"


def test_case_table_shows_times_ratios_and_gaps() -> None:
    rows = [
        ours(suite.FORWARD, 123.4),
        ours(suite.BOTH, 250.0),
        row(c.RELU_MINIMUM.name, suite.BOTH, 1000.0, 100.0),
        ours(suite.FORWARD, 80.0, dtype="float16"),
    ]
    table = tables.case_table(document(rows))
    cells = [dict(zip(table.header, cells, strict=True)) for cells in table.rows]
    assert [one["dtype"] for one in cells] == ["fp32", "fp16"]
    assert (cells[0]["forward, ms"], cells[0]["forward / clone"]) == ("123", "1.23")
    assert cells[0]["relu(minimum) / ours"] == "4.00"
    assert cells[0]["backward, ms"] == cells[0]["clamp / ours"] == cells[1]["relu(minimum) / ours"] == MISSING


def test_noise_is_that_of_the_floors() -> None:
    rows = [row(c.CLONE, suite.FORWARD, 100.0, 100.0, q1_ms=90.0, q3_ms=110.0), ours(suite.FORWARD, 1.0, q3_ms=99.0)]
    assert "20%, at most 20%" in tables.noise(document(rows))
    assert tables.noise(document([])) == "nothing measured"


def test_page_faults_are_those_of_large_forward_passes() -> None:
    rows = [row(c.CLONE, suite.FORWARD, 1.0, 1.0, page_faults=faults) for faults in (10.0, 30.0, 20.0)]
    rows += [row(c.CLONE, suite.BACKWARD, 1.0, 1.0, page_faults=900.0), row(c.CLAMP.name, suite.FORWARD, 1.0, 1.0)]
    assert tables.page_faults(document(rows)) == "page faults not measured"
    rows += [ours(suite.FORWARD, 1.0, page_faults=3.0), ours(suite.FORWARD, 1.0, page_faults=800.0, x_bytes=1)]
    assert tables.page_faults(document(rows)).endswith(">= 64 MiB: clone 20, dreluop 3")
