"""The benchmark on a machine made of the CPU: cases, byte model, rows, files, targets, tables, the picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import report
from benchmarks.gpu import bench, suite, tables
from benchmarks.gpu.document import Document, Gpu, folder_of, new_document
from benchmarks.gpu.targets import LAUNCHES, TARGETS, Target, evaluate
from benchmarks.harness import implementations as c
from benchmarks.harness import machine as results
from benchmarks.harness.cuda_graphs import Machine
from benchmarks.harness.table import MISSING
from benchmarks.kernels.suite import BACKWARD, BOTH, FORWARD, Failure
from benchmarks.resuming import go_on
from benchmarks.running import INTERRUPTED
from dreluop.backends import native
from tests.benchmarks.gpu.conftest import BUDGET, CASES, GPU, WHO

PASSES = (FORWARD, BACKWARD, BOTH)


def test_cases_cover_what_the_targets_speak_of() -> None:
    found = suite.cases()
    assert len({(case.name, case.dtype) for case in found}) == len(found)
    plain = [case for case in found if not case.bias_and_residual]
    for low, high in ((2**26, 1.1 * 2**26), (0.95 * 2**30, 1.2 * 2**30)):
        seen = {(case.granularity, case.channels_last, case.dtype) for case in plain if low <= case.x_bytes <= high}
        inputs = {("channel", False), ("channel", True), ("layer", False), ("neuron", False)}
        assert {(granularity, last) for granularity, last, _ in seen} == inputs
        assert len(seen) == 4 * len(inputs), "four dtypes each"
    small = [case for case in plain if case.x_bytes <= 2**20]
    assert {case.granularity for case in small} == {"channel", "layer", "neuron"}
    assert {case.bias_and_residual for case in found} == {(), ("bias",), ("residual",), ("bias", "residual")}
    assert all({c.OURS.name, c.OURS_MASK.name} <= set(case.implementations) for case in found)


def test_quick_cases_are_few() -> None:
    found = suite.cases(quick=True)
    assert 3 <= len(found) <= 8
    assert any(case.x_bytes >= suite.LARGE for case in found) and any(case.x_bytes <= 2**20 for case in found)


@pytest.mark.parametrize(
    ("bias_and_residual", "code", "forward", "backward"),
    [
        ((), False, 2 * 240, 3 * 240),
        ((), True, 2 * 240 + 15, 2 * 240 + 15),
        (("bias",), False, 2 * 240, 3 * 240),
        (("residual",), False, 3 * 240, 3 * 240),
        (("bias", "residual"), True, 3 * 240 + 15, 2 * 240 + 15),
    ],
)
def test_byte_model(bias_and_residual: tuple[str, ...], code: bool, forward: int, backward: int) -> None:
    # 60 elements of 4 bytes; their codes take 15.
    case = replace(CASES[0], shape=(1, 3, 4, 5), bias_and_residual=bias_and_residual)
    found = [suite.min_bytes(case, pass_, code=code) for pass_ in PASSES]
    assert found == [forward, backward, forward + backward]


@pytest.mark.parametrize(
    ("x_bytes", "calls"), [(2**10, 512), (2**20, 100), (64 * 2**20, 2), (200 * 2**20, 2), (2**30, 1)]
)
def test_buffers_are_rotated_so_that_the_cache_is_cold(x_bytes: int, calls: int) -> None:
    assert suite.calls_per_graph(x_bytes, 50 * 2**20) == calls


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rows(case: suite.GpuCase, machine: Machine) -> None:
    rows, failures = suite.run_case(case, BUDGET, machine)
    assert failures == []
    found = {(row["pass"], row["implementation"]): row for row in rows}
    assert set(found) == {(pass_, who) for pass_ in PASSES for who in (c.COPY, *WHO)}
    calls = suite.calls_per_graph(case.x_bytes, machine.cache_bytes)
    for (pass_, who), row in found.items():
        assert set(row) == set(suite.Row.__annotations__)
        assert 0 < row["min_ms"] <= row["q1_ms"] <= row["ms"] <= row["q3_ms"]
        assert (row["samples"], row["calls_per_sample"]) == (3, calls)
        assert row["gb_per_s"] == pytest.approx(row["min_bytes"] / row["ms"] * 1e-6)
        assert row["fraction_of_copy"] == pytest.approx(row["gb_per_s"] / row["copy_gb_per_s"])
        copy = found[pass_, c.COPY]
        assert row["copy_gb_per_s"] == pytest.approx(copy["gb_per_s"])
        assert copy["fraction_of_copy"] == pytest.approx(1)
        kernels = None if who == c.COPY else 2 if pass_ == BOTH else 1
        assert row["kernels"] == kernels
        assert (row["mode"], row["threads"]) == ("cold", None)
        assert row["peak_bytes"] == (None if who == c.COPY else 1 if pass_ == FORWARD else 2)
        code = -(-torch.Size(case.shape).numel() // 4)
        if who == c.OURS_MASK.name:
            assert row["saved_bytes"] == code and (row["saves_x"], row["saves_y"]) == (False, False)
        if who == c.OURS.name:
            assert row["saved_bytes"] == 0 and (row["saves_x"], row["saves_y"]) == (False, True)
    assert found[FORWARD, c.COPY]["min_bytes"] == 2 * case.x_bytes


def test_other_forms_and_fixed_caps_are_measured_once_each(machine: Machine) -> None:
    found = {name for case in suite.cases() for name in case.implementations}
    assert found == set(c.installed(tuple(c.IMPLEMENTATIONS)))
    compiled = [name for case in suite.cases() for name in case.implementations if c.IMPLEMENTATIONS[name].compiled]
    assert len(compiled) <= 14, "it takes seconds each"
    who = c.installed((*suite.OTHER_FORMS, *suite.FIXED))
    case = replace(CASES[0], granularity="layer", implementations=who)
    rows, failures = suite.run_case(case, BUDGET, machine)
    assert failures == []
    assert {row["implementation"] for row in rows} == {c.COPY, *who}


def test_launches_that_cannot_be_counted_do_not_stop_the_rest(machine: Machine) -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("no profiler")

    rows, failures = suite.run_case(CASES[0], BUDGET, replace(machine, launches=broken, peaks=lambda _: None))
    assert len(rows) == 3 * (1 + len(WHO))
    assert {(row["kernels"], row["memsets"], row["peak_bytes"]) for row in rows} == {(None, None, None)}
    assert [(f["implementation"], f["reason"]) for f in failures] == [("launches", "RuntimeError: no profiler")]


def test_every_buffer_is_used_and_results_stay_until_all_are_there(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def spy(x: torch.Tensor, cap: torch.Tensor, dim: int) -> torch.Tensor:
        y = c.relu_minimum(x, cap, dim)
        seen.append((x.data_ptr(), y.data_ptr()))
        return y

    monkeypatch.setitem(c.IMPLEMENTATIONS, "spy", c.Implementation("spy", spy))
    suite.run_case(replace(CASES[0], implementations=("spy",)), BUDGET, machine)
    calls = suite.calls_per_graph(CASES[0].x_bytes, machine.cache_bytes)
    last = seen[-calls:]
    assert calls == 5
    assert len({x for x, _ in last}) == len({y for _, y in last}) == calls


def test_a_implementation_that_fails_is_left_out_with_its_reason(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("no kernel\nmore")

    def wrong(x: torch.Tensor, cap: torch.Tensor, dim: int) -> torch.Tensor:
        return c.relu_minimum(x, cap, dim) + 1

    monkeypatch.setitem(c.IMPLEMENTATIONS, "broken", c.Implementation("broken", broken))
    monkeypatch.setitem(c.IMPLEMENTATIONS, "wrong", c.Implementation("wrong", wrong))
    rows, failures = suite.run_case(replace(CASES[0], implementations=("broken", "wrong", "clamp")), BUDGET, machine)
    assert {row["implementation"] for row in rows} == {c.COPY, "clamp"}
    assert [(f["implementation"], f["reason"]) for f in failures] == [
        ("broken", "RuntimeError: no kernel"),
        ("wrong", "ValueError: wrong values: not timed"),
    ]


def test_a_case_for_which_memory_is_short_is_left_out(machine: Machine) -> None:
    case = next(case for case in suite.cases() if case.x_bytes >= 2**30)
    rows, failures = suite.run_case(case, BUDGET, replace(machine, free_bytes=lambda: 8 * 2**30))
    assert rows == []
    assert failures[0]["implementation"] is None
    assert "free memory, and there are 8" in failures[0]["reason"]


def test_interrupted_the_file_holds_the_cases_that_were_done(
    tmp_path: Path, gpu: Gpu, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_case = suite.run_case

    def interrupted(case: suite.GpuCase, *_: Any) -> Any:
        if case is CASES[1]:
            raise KeyboardInterrupt
        return run_case(case, BUDGET, machine)

    monkeypatch.setattr(bench, "run_case", interrupted)
    path = tmp_path / "kernels.json"
    assert bench.measure(new_document(quick=False), CASES, machine, path) == INTERRUPTED
    kept = results.load(path)
    assert not kept["complete"]
    assert {row["case"] for row in kept["rows"]} == {"tiny image"}
    monkeypatch.setattr(bench, "run_case", lambda case, *_: run_case(case, BUDGET, machine))
    assert bench.measure(new_document(quick=False), CASES, machine, path) == 0
    assert results.load(path)["complete"]


def test_going_on_from_an_earlier_run(document: Document) -> None:
    half: Document = {**document, "date": "2026-01-02T03:04:05+00:00", "commit": {"hash": "a" * 40, "dirty": False}}
    half["rows"] = [row for row in document["rows"] if row["case"] == CASES[0].name]
    made: Document = {**document, "rows": [], "date": "2026-02-03T00:00:00+00:00"}
    assert go_on(made, half, CASES, bench.SUITE) == CASES[1:]
    assert made["rows"] == half["rows"]
    assert [run["cases"] for run in made["earlier"]] == [[f"{CASES[0].name}, fp32"]]
    made["rows"] = made["rows"] + [row for row in document["rows"] if row["case"] == CASES[1].name]
    assert "in several runs: 1 cases on 2026-01-02 (aaaaaaaaaa), 1 cases on 2026-02-03 (" in tables.headline(made)


def test_a_case_of_which_something_failed_is_measured_again(document: Document) -> None:
    failure: Failure = {
        "case": CASES[0].name,
        "dtype": CASES[0].dtype_name,
        "implementation": c.OURS.name,
        "reason": "why",
    }
    made: Document = {**document, "rows": []}
    assert go_on(made, {**document, "failures": [failure]}, CASES, bench.SUITE) == CASES[:1]
    assert {row["case"] for row in made["rows"]} == {CASES[1].name}


@pytest.mark.parametrize("change", [{"quick": True}, {"device": {**GPU, "driver": "other"}}, {"versions": {}}], ids=str)
def test_an_earlier_run_of_something_else_is_refused(document: Document, change: dict[str, Any]) -> None:
    former: Document = {**document, **change}  # type: ignore[typeddict-item]
    with pytest.raises(ValueError, match=f"resume: got {next(iter(change))}"):
        go_on({**document, "rows": []}, former, CASES, bench.SUITE)


def test_document(gpu: Gpu) -> None:
    made = new_document(quick=True)
    assert set(made) == set(Document.__annotations__)
    assert (made["quick"], made["complete"], made["rows"], made["failures"]) == (True, False, [], [])
    assert json.loads(json.dumps(made)) == made
    assert folder_of(GPU) == results.RESULTS / "some-gpu-80gb"


def row_like(row: suite.Row, **changes: Any) -> suite.Row:
    return {**row, **changes}  # type: ignore[typeddict-item]


def test_targets(rows: list[suite.Row]) -> None:
    like = next(row for row in rows if row["case"] == "tiny image" and row["implementation"] == c.OURS.name)
    large = row_like(like, x_bytes=suite.LARGE, fraction_of_copy=0.94, ms=1.0, kernels=1, **{"pass": FORWARD})
    share = Target(FORWARD, c.COPY, 0.95, ("float32",))
    assert [verdict.met for verdict in evaluate(share, [large])] == [False]
    assert [verdict.met for verdict in evaluate(share, [row_like(large, fraction_of_copy=0.95)])] == [True]
    for other in (
        row_like(large, bias_and_residual=["bias"]),
        row_like(large, dtype="float64"),
        row_like(large, x_bytes=9),
    ):
        assert evaluate(share, [other]) == []
    rival = row_like(large, implementation=c.CLAMP.name, ms=4.0)
    assert evaluate(Target(FORWARD, c.CLAMP.name, 4), [large, rival])[0].met
    assert not evaluate(Target(FORWARD, c.CLAMP.name, 4.1), [large, rival])[0].met
    assert evaluate(Target(FORWARD, c.CLAMP.name, 4), [large]) == [], "not measured"
    assert not evaluate(Target(FORWARD, LAUNCHES, 1), [row_like(large, kernels=2)])[0].met
    assert evaluate(Target(FORWARD, LAUNCHES, 1), [row_like(large, kernels=None)]) == []


def test_the_targets_of_the_plan() -> None:
    limits = {(t.pass_, t.against, t.implementation, t.small): t.limit for t in TARGETS}
    assert limits[FORWARD, c.COPY, c.OURS.name, False] == 0.95
    assert limits[BACKWARD, c.COPY, c.OURS.name, False] == 0.92
    assert limits[BACKWARD, LAUNCHES, c.OURS.name, False] == 1
    assert limits[BOTH, c.RELU_MINIMUM.name, c.OURS.name, False] == 4
    assert limits[BOTH, c.COMPILED.name, c.OURS.name, False] == 1.15
    assert limits[BOTH, c.COMPILED.name, c.OURS_MASK.name, False] == 1.3
    assert limits[BOTH, c.RELU_MINIMUM.name, c.OURS.name, True] == 2


def test_tables_and_headline(document: Document) -> None:
    header, lines = (table := tables.case_table(document)).header, table.rows
    assert [line[0] for line in lines] == ["tiny image", "tiny dense"]
    assert all(len(line) == len(header) for line in lines)
    assert len(tables.target_table(document).rows) == len(TARGETS)
    assert lines[0][header.index("forward, Triton")] == MISSING
    text = tables.headline(document)
    assert "Some GPU 80GB, 132 multiprocessors, driver 580.1" in text
    assert "interrupted" not in text
    assert "interrupted: not all cases" in tables.headline({**document, "complete": False})


def test_the_report_tells_gpus_from_processors(tmp_path: Path, document: Document) -> None:
    results.save(document, tmp_path / "gpu" / results.FILE_NAME)
    marks = "".join(f"<!-- report:{name}:begin -->\n<!-- report:{name}:end -->\n" for name in ("kernels", "gpu"))
    processors, GPUs = report.updated(marks, tmp_path).split("<!-- report:gpu:begin -->")
    assert "Nothing has been measured yet." in processors
    assert "Some GPU 80GB" in GPUs and "| tiny image | 2x3x4x5 | fp32 |" in GPUs


def test_of_the_targets_alone_no_case_is_reported(tmp_path: Path, document: Document) -> None:
    assert report.gpu_targets(tmp_path) == report.NOTHING
    results.save(document, tmp_path / "gpu" / results.FILE_NAME)
    targets, everything = report.gpu_targets(tmp_path), report.gpu(tmp_path)
    assert "Some GPU 80GB" in targets and "| backward: bandwidth of a copy |" in targets
    assert "| tiny image |" in everything and "| tiny image |" not in targets
    assert "without bias and residual" in targets


def test_interruption_shows_and_draws_what_there_is(
    tmp_path: Path, document: Document, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(made: Document, *_: Any) -> int:
        made["rows"] += document["rows"]
        results.save(made, tmp_path / results.FILE_NAME)
        return INTERRUPTED

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(native, "cuda_reason", lambda: None, raising=False)
    monkeypatch.setattr(bench, "new_document", lambda quick: {**document, "complete": False, "rows": []})
    monkeypatch.setattr(bench, "cuda_machine", lambda: None)
    monkeypatch.setattr(bench, "measure", interrupted)
    assert bench.main(["--out", str(tmp_path)]) == INTERRUPTED
    assert "| tiny image |" in capsys.readouterr().out
    assert (tmp_path / "kernels.png").exists()


def test_the_command_goes_on(tmp_path: Path, document: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(bench, "served_by_cuda", lambda parser: None)
    monkeypatch.setattr(bench, "new_document", lambda quick: {**document, "complete": False, "rows": []})
    monkeypatch.setattr(bench, "cases", lambda quick: CASES)
    monkeypatch.setattr(bench, "cuda_machine", lambda: None)
    monkeypatch.setattr(bench, "measure", lambda made, selected, *_: seen.extend(selected) or 0)
    monkeypatch.setattr(bench, "draw", lambda made, path: None)
    half = [row for row in document["rows"] if row["case"] == CASES[0].name]
    results.save({**document, "rows": half}, tmp_path / "former.json")
    assert bench.main(["--out", str(tmp_path), "--resume", str(tmp_path / "former.json")]) == 0
    assert seen == CASES[1:]


def test_the_reference_is_not_measured_unasked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(native, "cuda_reason", lambda: "driver too old", raising=False)
    with pytest.raises(SystemExit, match="2"):
        bench.main([])
    assert "the native CUDA kernels do not serve" in capsys.readouterr().err


def test_triton_stands_beside_the_default_kernels(document: Document) -> None:
    assert c.OURS_TRITON.name in suite.EAGER
    ours = [row for row in document["rows"] if row["implementation"] == c.OURS.name]
    changes = {"implementation": c.OURS_TRITON.name, "fraction_of_copy": 0.9}
    by_triton = [row_like(row, ms=2 * row["ms"], **changes) for row in ours]
    table = tables.case_table({**document, "rows": [*document["rows"], *by_triton]})
    for line in table.rows:
        found = dict(zip(table.header, line, strict=True))
        assert found["forward, Triton"] == found["backward, Triton"] == "90%"
        assert found[f"{c.OURS_TRITON.name} / ours"] == "2.00"
