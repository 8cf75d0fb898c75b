"""The benchmark of the activation: cases, what a run measures, targets, tables, headlines, and the report."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_kernels, kernel_cases
from benchmarks.bench_kernels import BENCH, KERNELS, TARGETS
from benchmarks.harness import implementations as c
from benchmarks.harness import machine
from benchmarks.harness.activations import BACKWARD, BOTH, COLD, FORWARD, HOT, IN_PLACE, LARGE
from benchmarks.harness.cli import Run
from benchmarks.harness.machine import Gpu, Platform
from benchmarks.harness.records import Record
from benchmarks.harness.table import MISSING
from benchmarks.kernel_cases import cases
from tests.benchmarks.conftest import BUDGET, CASES, EAGER, Accelerator, Processor, measured
from tools import report

SMALL = kernel_cases.SMALL


def test_cases_of_a_processor_are_those_that_the_targets_need() -> None:
    found = cases("cpu", {})
    assert len({case.label for case in found}) == len(found)
    large = [case for case in found if case.shape != SMALL]
    assert all(LARGE <= case.x_bytes <= 1.1 * LARGE for case in large)
    dtypes = {torch.float32, torch.bfloat16, torch.float16, torch.float64}
    for granularity, channels_last in (("channel", False), ("channel", True), ("layer", False), ("neuron", False)):
        of = [case for case in large if (case.granularity, case.channels_last) == (granularity, channels_last)]
        assert {case.dtype for case in of} == dtypes
        assert all(c.OURS.name in case.implementations and case.in_place for case in of)
        assert any(case.threads is None for case in of)
    assert any(case.shape == SMALL and c.RELU_MINIMUM.name in case.implementations for case in found)
    expected = set(c.installed(tuple(c.IMPLEMENTATIONS))) - {c.OURS_MASK.name, c.OURS_TRITON.name}
    assert {name for case in found for name in case.implementations} == expected
    alone = [case for case in found if case.threads is not None]
    assert {case.threads for case in alone} == {1} and len({case.shape for case in alone}) == 2
    assert all(case.name.endswith(", 1 thread") for case in alone)
    assert 3 <= len(cases("cpu", {"quick": True})) <= 4


def test_cases_of_a_gpu_cover_what_the_targets_are_for() -> None:
    found = cases("cuda", {})
    assert len({case.label for case in found}) == len(found)
    plain = [case for case in found if not case.bias_and_residual]
    for low, high in ((2**26, 1.1 * 2**26), (0.95 * 2**30, 1.2 * 2**30)):
        seen = {(case.granularity, case.channels_last, case.dtype) for case in plain if low <= case.x_bytes <= high}
        inputs = {("channel", False), ("channel", True), ("layer", False), ("neuron", False)}
        assert {(granularity, last) for granularity, last, _ in seen} == inputs
        assert len(seen) == 4 * len(inputs), "four dtypes each"
    small = [case for case in plain if case.x_bytes <= 2**20]
    assert {case.granularity for case in small} == {"channel", "layer", "neuron"}
    assert {case.bias_and_residual for case in found} == {(), ("bias",), ("residual",), ("bias", "residual")}
    ours = {c.OURS.name, c.OURS_MASK.name, c.OURS_TRITON.name}
    assert all(ours <= set(case.implementations) for case in found)
    assert {name for case in found for name in case.implementations} == set(c.installed(tuple(c.IMPLEMENTATIONS)))
    compiled = [name for case in found for name in case.implementations if c.IMPLEMENTATIONS[name].compiled]
    assert len(compiled) <= 14, "it takes seconds each"
    quick = cases("cuda", {"quick": True})
    assert 3 <= len(quick) <= 8
    assert any(case.x_bytes >= LARGE for case in quick) and any(case.x_bytes <= 2**20 for case in quick)


@pytest.mark.parametrize(
    ("x_bytes", "calls"), [(2**10, 512), (2**20, 100), (64 * 2**20, 2), (200 * 2**20, 2), (2**30, 1)]
)
def test_buffers_are_rotated_so_that_the_cache_is_cold(x_bytes: int, calls: int) -> None:
    assert kernel_cases.calls_per_graph(x_bytes, 50 * 2**20) == calls


@pytest.mark.parametrize(("cache", "mode"), [(2 * 4 * 120, HOT), (2 * 4 * 120 - 1, COLD)])
def test_x_and_y_beyond_the_cache_are_cold(cache: int, mode: str) -> None:
    rows = measured(kernel_cases.run(CASES[0], Run(Processor(cache)), BUDGET))
    assert {row["mode"] for row in rows} == {mode} and {row["threads"] for row in rows} == {torch.get_num_threads()}
    rows = measured(kernel_cases.run(replace(CASES[0], threads=3), Run(Processor(cache)), BUDGET))
    assert {row["threads"] for row in rows} == {3}


def test_a_gpu_goes_round_its_buffers() -> None:
    rows = measured(kernel_cases.run(CASES[0], Run(Accelerator()), BUDGET))
    calls = kernel_cases.calls_per_graph(CASES[0].x_bytes, 1000)
    assert {(row["mode"], row["buffers"], row["calls_per_sample"]) for row in rows} == {(COLD, calls, calls)}


def test_demo_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    tiny = [replace(CASES[0], implementations=EAGER)]
    rows = kernel_cases.demo_rows(1, tiny, BUDGET)
    assert torch.get_num_threads() == before
    assert [(row["implementation"], row["dtype"], row["pass"]) for row in rows] == [
        (who, "float32", pass_) for pass_ in (FORWARD, BACKWARD, BOTH) for who in EAGER
    ]
    assert all(row["ms"] / row["floor_ms"] == pytest.approx(row["ratio_to_floor"]) for row in rows)
    asked: list[Any] = []
    monkeypatch.setattr(kernel_cases, "run", lambda case, *_: asked.append(case) or [])
    kernel_cases.demo_rows()
    assert [(case.granularity, case.dtype, case.implementations, case.in_place) for case in asked] == [
        ("channel", torch.float32, EAGER, False),
        ("channel", torch.bfloat16, EAGER, False),
    ]
    failed = [{"implementation": "clamp", "failure": "why"}]
    monkeypatch.setattr(kernel_cases, "run", lambda case, *_: failed)
    with pytest.raises(RuntimeError, match="clamp: why"):
        kernel_cases.demo_rows()


def row(implementation: str, pass_: str, ms: float, **changes: Any) -> dict[str, Any]:
    made = {
        **{"mode": "cold", "pass": pass_, "implementation": implementation, "input": "images"},
        **{"bias_and_residual": "", "shape": [32, 64, 92, 92], "dtype": "float32", "x_bytes": LARGE, "threads": 2},
        **{"ms": ms, "q1_ms": ms, "q3_ms": ms, "min_ms": ms, "samples": 5, "calls_per_sample": 1, "page_faults": 0.0},
        **{"floor": c.COPY if pass_ == IN_PLACE else c.CLONE, "floor_ms": 100.0, "ratio_to_floor": ms / 100},
        **{"min_bytes": 1, "gb_per_s": 1.0, "copy_gb_per_s": 2000.0, "fraction_of_copy": 0.5, "kernels": 1},
    }
    return made | changes


def ours(pass_: str, ms: float, **changes: Any) -> dict[str, Any]:
    return row(c.OURS.name, pass_, ms, **changes)


def record(*rows: dict[str, Any], **settings: Any) -> Record:
    made = BENCH.new_record(Platform())
    made.run["settings"] |= {"threads": 2, **settings}
    for one in rows:
        made.add(f"{one['input']}, {one['dtype']}", [one], BENCH.key)
    return made


def outcomes(made: Record) -> dict[str, str]:
    return {"; ".join(cells[:2]): cells[-1] for cells in bench_kernels.targets(made).rows}


@pytest.mark.parametrize(("ms", "met"), [(104.0, True), (105.0, True), (105.1, False)])
def test_floor_limits_are_upper(ms: float, met: bool) -> None:
    expected = "yes, 1 of 1" if met else "**missed** in 1 of 1"
    assert outcomes(record(ours(FORWARD, ms)))["forward against clone; >= 64 MiB"] == expected


@pytest.mark.parametrize(("ms", "met"), [(501.0, True), (500.0, True), (499.0, False)])
def test_speed_up_limits_are_lower(ms: float, met: bool) -> None:
    found = outcomes(record(ours(BOTH, 100.0), row(c.RELU_MINIMUM.name, BOTH, ms)))
    expected = "yes, 1 of 1" if met else "**missed** in 1 of 1"
    assert found[f"{BOTH} against relu(minimum); >= 64 MiB, fp32"] == expected


def test_a_target_is_for_its_pass_sizes_dtypes_and_threads_only() -> None:
    rows = [
        ours(BACKWARD, 1.0),
        ours(FORWARD, 1.0, x_bytes=LARGE - 1, input="smaller"),
        ours(FORWARD, 300.0, threads=1, input="images, 1 thread"),
        row(c.CLAMP.name, FORWARD, 1.0),
        *(one for dtype in ("bfloat16", "float16") for one in (ours(BOTH, 100.0, dtype=dtype),)),
        # Of other inputs, with which nothing is compared.
        row(c.RELU_MINIMUM.name, BOTH, 900.0, input="other"),
        row(c.RELU_MINIMUM.name, BOTH, 900.0, dtype="float64"),
    ]
    found = outcomes(record(*rows))
    assert len(found) == len(TARGETS["cpu"])
    assert {name for name, outcome in found.items() if outcome != "not measured"} == {
        "backward against clone; >= 64 MiB"
    }
    small = {"shape": list(SMALL), "x_bytes": 2**17, "input": "small"}
    found = outcomes(record(ours(BOTH, 1.0, **small), row(c.RELU_MINIMUM.name, BOTH, 5.0, **small)))
    assert found[f"{BOTH} against relu(minimum); 64 x 512"] == "yes, 1 of 1"


def test_the_table_says_where_other_threads_were_used() -> None:
    found = outcomes(record(ours(FORWARD, 104.0, threads=1), threads=1))
    assert found["forward against clone; >= 64 MiB"] == "yes, 1 of 1 (meant for 2 threads)"


def test_the_targets_of_the_plan() -> None:
    shown = {(target.where["pass"], target.value, target.where["implementation"]): [] for target in TARGETS["cuda"]}
    for target in TARGETS["cuda"]:
        shown[target.where["pass"], target.value, target.where["implementation"]].append(target.limit)
    assert shown[FORWARD, "fraction_of_peak", c.OURS.name] == [0.90, 0.86]
    assert shown[BACKWARD, "fraction_of_peak", c.OURS.name] == [0.88, 0.82]
    assert shown[BACKWARD, KERNELS, c.OURS.name] == [1, 1]
    assert shown[BOTH, f"{c.RELU_MINIMUM.name} / ours", c.OURS.name] == [4, 2]
    assert shown[BOTH, f"{c.COMPILED.name} / ours", c.OURS.name] == [1.15]
    assert shown[BOTH, f"{c.COMPILED.name} / ours", c.OURS_MASK.name] == [1.3]
    assert all(target.at_most == (target.value == KERNELS) for target in TARGETS["cuda"])


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("changes", "small", "large"),
    [
        # Of the GPU's peak of 3352 GB/s.
        ({"gb_per_s": 2882.0}, "**missed** in 1 of 1", "not measured"),
        ({"gb_per_s": 2883.0}, "yes, 1 of 1", "not measured"),
        ({"gb_per_s": 3016.0, "x_bytes": 2**30}, "not measured", "**missed** in 1 of 1"),
        ({"gb_per_s": 3017.0, "x_bytes": 2**30}, "not measured", "yes, 1 of 1"),
        ({"bias_and_residual": "bias"}, "not measured", "not measured"),
        ({"dtype": "float64"}, "not measured", "not measured"),
        ({"x_bytes": 9}, "not measured", "not measured"),
    ],
    ids=str,
)
def test_the_share_of_a_gpu(changes: dict[str, Any], small: str, large: str) -> None:
    found = outcomes(record(ours(FORWARD, 1.0, **changes)))
    name = "forward: of the peak bandwidth; {} without bias and residual, fp32, bf16, fp16"
    assert (found[name.format("64 MB")], found[name.format("1 GB")]) == (small, large)


@pytest.mark.usefixtures("gpu")
def test_a_gpu_of_unknown_peak_has_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PEAKS", {})
    made = record(ours(FORWARD, 1.0))
    name = "forward: of the peak bandwidth; 64 MB without bias and residual, fp32, bf16, fp16"
    assert outcomes(made)[name] == "not measured"
    table = bench_kernels.case_table(made)
    assert dict(zip(table.header, table.rows[0], strict=True))["forward"] == MISSING


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("kernels", "outcome"), [(1, "yes"), (2, "**missed**"), (None, "not measured")])
def test_launches_of_a_gpu(kernels: int | None, outcome: str) -> None:
    found = outcomes(record(ours(BACKWARD, 1.0, kernels=kernels)))
    assert found["backward: kernels launched; >= 64 MB without bias and residual"].startswith(outcome)


def test_the_table_of_cases_shows_times_ratios_and_gaps() -> None:
    rows = [
        ours(FORWARD, 123.4),
        ours(BOTH, 250.0),
        row(c.RELU_MINIMUM.name, BOTH, 1000.0),
        ours(FORWARD, 80.0, dtype="float16"),
    ]
    table = bench_kernels.case_table(record(*rows))
    found = [dict(zip(table.header, cells, strict=True)) for cells in table.rows]
    assert [one["dtype"] for one in found] == ["fp32", "fp16"]
    assert (found[0]["shape"], found[0]["forward, ms"], found[0]["forward / clone"]) == ("32x64x92x92", "123", "1.23")
    assert found[0]["relu(minimum) / ours"] == "4.00"
    assert found[0]["backward, ms"] == found[0]["clamp / ours"] == found[1]["relu(minimum) / ours"] == MISSING


@pytest.mark.usefixtures("gpu")
def test_the_table_of_a_gpu_has_the_other_kernels_beside_ours() -> None:
    variants = ((c.OURS_MASK.name, 0.8), (c.OURS_TRITON.name, 0.9))
    rows = [ours(pass_, 1.0, gb_per_s=1676.0, copy_gb_per_s=3352.0) for pass_ in (FORWARD, BACKWARD, BOTH)]
    rows += [
        {**one, "implementation": name, "ms": 2.0, "gb_per_s": 3352 * f} for one in rows[:3] for name, f in variants
    ]
    table = bench_kernels.case_table(record(*rows))
    (found,) = (dict(zip(table.header, cells, strict=True)) for cells in table.rows)
    assert found["copy"] == "100%"
    assert found["forward"] == "50%" and found["backward, mask"] == "80%" and found["forward, Triton"] == "90%"
    assert found[f"{c.OURS_TRITON.name} / ours"] == "2.00" and found["clamp / ours"] == MISSING


def test_the_headline_has_noise_and_page_faults() -> None:
    clones = [
        row(c.CLONE, FORWARD, 100.0, q1_ms=90.0, q3_ms=110.0, page_faults=faults) for faults in (10.0, 30.0, 20.0)
    ]
    rows = [*clones, row(c.CLONE, BACKWARD, 100.0, page_faults=900.0, q1_ms=90.0, q3_ms=110.0)]
    text = bench_kernels.headline(record(*rows))
    assert "2 threads; " in text and "kernels" in text and "page faults not measured" in text
    assert "20%, at most 20%" in text and "missing" in text
    rows += [ours(FORWARD, 1.0, page_faults=3.0), ours(FORWARD, 1.0, page_faults=800.0, x_bytes=1)]
    assert bench_kernels.headline(record(*rows)).endswith(">= 64 MiB: clone 20, dreluop 3")


def test_the_headline_of_a_gpu(gpu: Gpu) -> None:
    text = bench_kernels.headline(record(row(c.COPY, FORWARD, 1.0), quick=True))
    assert f"{gpu['name']}, 132 multiprocessors, driver 580.1" in text and "copy 2000 GB/s" in text
    assert "quick run" in text and "missing" in text


def test_tables_of_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cases, "QUICK", {"cpu": BUDGET})
    made = BENCH.new_record(Platform(), quick=True)
    for case in CASES:
        made.add(case.label, BENCH.run(case, Run(Processor(), quick=True)), BENCH.key)
    first, second, last = BENCH.tables(made)
    assert (first.title, second.title, last.title) == ("tiny image, fp32: 2x3x4x5", "tiny dense, bf16: 4x8", "Targets")
    assert len(first.rows) == len(second.rows) == 3 * 6 and all(len(line) == len(first.header) for line in first.rows)
    assert json.loads(json.dumps(made.rows)) == made.rows


MARKS = "".join(f"<!-- report:{name}:begin -->\n<!-- report:{name}:end -->\n" for name in ("kernels", "gpu"))


def test_the_report_separates_gpus_from_processors(tmp_path: Path, gpu: Gpu) -> None:
    record(ours(FORWARD, 1.0), row(c.COPY, FORWARD, 1.0)).save(tmp_path / "gpu" / BENCH.file_name)
    processors, gpus = report.updated(MARKS, tmp_path).split("<!-- report:gpu:begin -->")
    assert "Nothing has been measured yet." in processors
    assert gpu["name"] in gpus and "| images | 32x64x92x92 | fp32 |" in gpus
    targets = report.REPORTS["gpu-targets"](tmp_path)
    assert gpu["name"] in targets and "| backward: of the peak bandwidth |" in targets and "| images |" not in targets


def test_a_gpu_gets_its_picture_at_once(tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    made = record(ours(FORWARD, 1.0), row(c.COPY, FORWARD, 1.0))
    assert BENCH.finish(made, None) == BENCH.finish(made, tmp_path / BENCH.file_name) == 0
    assert (tmp_path / "kernels.png").exists() and gpu
    # The machine may lack pandas: then there are no tables and no picture, but the record.
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert BENCH.finish(made, tmp_path / "other.jsonl") == 0
    assert not (tmp_path / "other.png").exists()
    made.run["device"] = {"name": "A", "cores": 2}
    assert BENCH.finish(made, tmp_path / "processor.jsonl") == 0
    assert not (tmp_path / "processor.png").exists()
