from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_scaling
from benchmarks.bench_scaling import BENCH, CAPS, SIZE, Point, line, overhead_ends, styles
from benchmarks.harness import implementations as c
from benchmarks.harness.activations import COLD, EAGER_MODE, FORWARD, HOT
from benchmarks.harness.cli import Run
from benchmarks.harness.machine import Platform
from benchmarks.harness.records import Record
from tests.benchmarks.conftest import BUDGET, GPU, Accelerator, Processor, measured
from tools import report

CACHE = 50 * 2**20
WHO = (c.RELU_MINIMUM.name, c.OURS.name)
POINT = Point("480 B, 3 caps", "channel", (2, 3, 4, 5), torch.float32, WHO, modes=(HOT, COLD))


def points(kind: str, **settings: Any) -> list[Point]:
    return list(bench_scaling.cases(kind, {"cache_bytes": CACHE, **settings}))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_both_axes_are_covered(device: str) -> None:
    found = points(device)
    for dtype in (torch.bfloat16, torch.float32):
        of = [point for point in found if point.dtype == dtype and point.threads in (None, 2)]
        sizes = [point.x_bytes for point in of if point.axis == SIZE]
        largest = {"cpu": 2**28, "cuda": 2**30}[device]
        assert sizes == [2**power for power in range(10, int(math.log2(largest)) + 1, 2)]
        caps = [point for point in of if point.axis == CAPS]
        assert {point.x_bytes for point in caps} <= {2**26}
        if device == "cuda" or dtype == torch.bfloat16:
            assert [point.shape[1] for point in caps] == [1, 4, 16, 64, 256, 1024, 4096]
    assert all(point.granularity == "channel" and not point.channels_last for point in found)
    assert all(c.OURS.name in point.implementations for point in found)
    eager = [point for point in found if c.RELU_MINIMUM.name in point.implementations]
    assert {point.axis for point in eager} == {SIZE, CAPS}
    if device == "cuda":
        assert eager == found
    else:
        assert max(point.x_bytes for point in eager) == 2**26
    assert any(c.COMPILED.name in point.implementations for point in found)
    assert len(points("cuda", quick=True)) < 10


def test_sizes_share_their_caps_and_caps_their_size() -> None:
    for point in points("cuda"):
        assert point.cap_shape == ((64,) if point.axis == SIZE else (point.shape[1],))
        assert point.axis == SIZE or point.shape[2:] == (8, 8)


def test_a_gpu_has_triton_and_no_threads_a_processor_one_thread_and_two() -> None:
    for point in points("cuda"):
        assert c.OURS_TRITON.name in point.implementations and point.threads is None
        assert (EAGER_MODE in point.modes) == (point.axis == SIZE)
    found = points("cpu")
    assert {point.threads for point in found} == {1, 2}
    assert all(c.OURS_TRITON.name not in point.implementations and EAGER_MODE not in point.modes for point in found)
    assert not any(c.COMPILED.name in point.implementations for point in found if point.threads == 1)


@pytest.mark.parametrize("x_bytes", bench_scaling.SIZES)
def test_hot_fits_in_the_cache_and_cold_does_not(x_bytes: int) -> None:
    modes = bench_scaling.modes_of(x_bytes, CACHE)
    assert modes
    if HOT in modes:
        # What every call touches, eager temporaries included.
        assert bench_scaling.calls_when_hot(x_bytes, CACHE) * bench_scaling.TOUCHED * x_bytes <= CACHE
    else:
        assert modes == (COLD,)
    if COLD in modes:
        assert 2 * x_bytes * bench_scaling.buffers_when_cold(x_bytes, CACHE) >= 2 * CACHE
    assert bench_scaling.buffers_when_cold(x_bytes, CACHE) <= bench_scaling.MOST_BUFFERS


def test_tiny_tensors_are_not_called_cold() -> None:
    assert bench_scaling.modes_of(2**10, CACHE) == (HOT,)
    assert bench_scaling.modes_of(2**22, CACHE) == (HOT, COLD)
    assert bench_scaling.modes_of(2**28, CACHE) == (COLD,)


@pytest.mark.parametrize("elements", [255, 128, 3 * 2**10])
def test_only_powers_of_two_have_a_shape(elements: int) -> None:
    with pytest.raises(ValueError, match=f"elements: got {elements}; expected a power of 2"):
        bench_scaling.shape_of_size(elements)


@pytest.mark.parametrize("power", range(8, 30))
def test_shapes_hold_the_elements(power: int) -> None:
    shape = bench_scaling.shape_of_size(2**power)
    assert math.prod(shape) == 2**power
    assert shape[1] == 64
    assert shape[2] * shape[3] <= 64 * 64


@pytest.mark.parametrize(
    ("mode", "modes", "cache", "visited"),
    [
        (HOT, (HOT, COLD), 4000, (1, 1, True)),
        (COLD, (HOT, COLD), 4000, (9, 9, True)),
        (EAGER_MODE, (HOT, COLD, EAGER_MODE), 4000, (1, 1, False)),  # as hot, where there is hot
        (EAGER_MODE, (COLD, EAGER_MODE), 4000, (9, 9, False)),
        (EAGER_MODE, (COLD, EAGER_MODE), 400, (1, bench_scaling.LEAST_CALLS, False)),
    ],
)
def test_how_a_mode_goes_round_its_buffers(
    mode: str, modes: tuple[str, ...], cache: int, visited: tuple[int, int, bool]
) -> None:
    found = bench_scaling.visit(replace(POINT, modes=modes), mode, cache, True)
    assert (found.buffers, found.calls, found.captured) == visited


@pytest.mark.parametrize("platform", [Processor(4000), Accelerator(4000)], ids=["processor", "gpu"])
def test_rows(platform: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_scaling, "BUDGETS", {"cpu": BUDGET, "cuda": BUDGET})
    rows = measured(bench_scaling.run(replace(POINT, threads=1), Run(platform)))
    floors = {*c.COPIES} if platform.captures else {c.COPY, c.CLONE}
    assert {(row["mode"], row["implementation"]) for row in rows} == {
        (mode, who) for mode in (HOT, COLD) for who in (*floors, *WHO)
    }
    assert {(row["axis"], row["caps"], row["x_bytes"], row["threads"]) for row in rows} == {(SIZE, 3, 480, 1)}
    assert {(row["mode"], row["buffers"]) for row in rows} == {(HOT, 1), (COLD, 9)}


def row(x_bytes: int, ms: float, **changes: Any) -> dict[str, Any]:
    made = {"axis": SIZE, "x_bytes": x_bytes, "caps": 64, "dtype": "float32", "threads": 2, "mode": HOT}
    return {**made, "implementation": c.OURS.name, "pass": FORWARD, "ms": ms, "fraction_of_copy": 0.5, **changes}


def record(*rows: dict[str, Any]) -> Record:
    made = BENCH.new_record(Platform())
    for index, one in enumerate(rows):
        made.add(str(index), [one], BENCH.key)
    return made


def times(made: Record, which: int = 0, axis: str = SIZE) -> dict[int, float]:
    found = line(made.frame(), axis, styles(made)[which], c.OURS.name, FORWARD, "float32")
    return {place: one["ms"] for place, one in found.items()}


def test_cold_comes_before_hot_and_places_are_in_order() -> None:
    cold = row(2**20, 3, mode=COLD)
    for rows in ([row(2**20, 2), cold], [cold, row(2**20, 2)]):
        assert list(times(record(*rows, row(2**10, 1))).items()) == [(2**10, 1), (2**20, 3)]


def test_threads_and_the_host_are_styles_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = record(row(1, 2), row(1, 4, threads=1))
    assert (times(made), times(made, 1)) == ({1: 2}, {1: 4})
    made = record(row(1, 2, threads=None), row(1, 4, threads=None, mode=EAGER_MODE))
    made.run["device"] = GPU
    assert (times(made), times(made, 1)) == ({1: 2}, {1: 4})


def test_a_line_is_of_one_axis_implementation_pass_and_dtype() -> None:
    others = [{"implementation": c.CLAMP.name}, {"pass": "backward"}, {"dtype": "float64"}, {"axis": CAPS}]
    made = record(row(1, 2), *(row(1, 9, **{**change, "mode": COLD}) for change in others))
    assert times(made) == {1: 2}
    assert times(made, axis=CAPS) == {64: 9}


@pytest.mark.parametrize(
    ("ms", "end"), [([1, 1.5, 2, 8], 2**14), ([1, 1.9, 1.9, 1.9], None), ([1, 5, 1, 1], 2**12), ([1], None), ([], None)]
)
def test_the_overhead_ends_where_a_call_takes_twice_as_long(ms: list[float], end: int | None) -> None:
    assert overhead_ends({2 ** (10 + 2 * i): {"ms": value} for i, value in enumerate(ms)}) == end


def test_table_headline_and_report(tmp_path: Path) -> None:
    made = record(
        row(2**10, 0.005),
        row(2**20, 0.02),
        row(2**10, 0.01, implementation=c.RELU_MINIMUM.name),
        row(2**20, 0.1, implementation=c.RELU_MINIMUM.name),
        *(row(2**26, ms, axis=CAPS, caps=caps) for caps, ms in ((1, 2), (4, 3), (16, 2.5))),
    )
    (table,) = BENCH.tables(made)
    shown = "5", "1 MB", "0.02 (1 MB)", "50%", "5.00 (1 MB)", "2.00 (1 KB)", "1.50"
    assert table.rows == [("2 threads", "fp32", "forward", *shown)]
    assert len(table.header) == len(table.rows[0])
    text = BENCH.headline(made)
    assert "; last-level cache " in text and "not all cases: " in text
    made.save(tmp_path / "some" / BENCH.file_name)
    page = report.REPORTS["scaling"](tmp_path)
    assert "| 2 threads | fp32 | forward | 5 | 1 MB |" in page and page.endswith(bench_scaling.LEGEND)
