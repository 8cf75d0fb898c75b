"""Going on from an earlier run: what is taken over, measured again, or refused, and from the committed files."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import resuming
from benchmarks.compiled import suite as compiled
from benchmarks.compiled import triton_op
from benchmarks.gpu import bench
from benchmarks.gpu import suite as gpu
from benchmarks.harness import machine as results
from benchmarks.models import suite as models
from benchmarks.models.largest import Search
from benchmarks.resuming import Suite, cases_left, dates, go_on
from benchmarks.running import run_cases
from benchmarks.scaling import cases as scaling
from benchmarks.scaling import document as scaling_document
from tests.benchmarks.gpu.conftest import GPU

COMMIT = {"hash": "a" * 40, "dirty": False}
ROWS: resuming.Rows = {"rows": lambda row: row["of"].upper(), "others": lambda row: row["of"].upper()}
SUITE: Suite[str] = Suite(
    name=str.upper, implementations=lambda case: ("x", "y") if case in "abc" else ("x",), rows=ROWS
)  # fmt: skip
CASES = ["a", "b", "c", "d"]


def new(day: int = 9) -> dict[str, Any]:
    return {
        "schema": 1, "complete": False, "date": f"2026-01-0{day}T00:00:00+00:00", "device": {"name": "gpu"},
        "versions": {"torch": "2"}, "commit": {"hash": str(day) * 40, "dirty": False}, "earlier": [], "missing": [],
        "failures": [], "rows": [], "others": [],
    }  # fmt: skip


def rows(case: str, who: str = "xy") -> list[dict[str, str]]:
    return [{"of": case, "implementation": name} for name in who]


def former(**changes: Any) -> dict[str, Any]:
    return {**new(1), "rows": [*rows("a"), *rows("b")], "others": rows("d", "x"), "missing": ["C"], **changes}


def test_what_was_measured_whole_is_taken_over() -> None:
    made = new()
    assert go_on(made, former(), CASES, SUITE) == ["c"]
    assert made == {
        **new(),
        "rows": [*rows("a"), *rows("b")],
        "others": rows("d", "x"),
        "earlier": [{"date": new(1)["date"], "commit": new(1)["commit"], "cases": ["A", "B", "D"]}],
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"failures": [{"case": "B", "implementation": "y", "reason": "why"}]},
        {"rows": [*rows("a"), *rows("b", "x")]},
        {"rows": rows("a")},
    ],
    ids=["failed", "without an implementation", "without rows"],
)
def test_what_was_not_is_measured_again_as_a_whole(changes: dict[str, Any]) -> None:
    made = new()
    assert go_on(made, former(**changes), CASES, SUITE) == ["b", "c"]
    assert made["rows"] == rows("a") and made["others"] == rows("d", "x") and made["failures"] == []


def test_each_run_keeps_its_cases_unless_they_are_measured_again() -> None:
    first = [{"date": "2025", "commit": None, "cases": ["A"]}, {"date": "2026", "commit": COMMIT, "cases": ["B"]}]
    made = new()
    go_on(made, former(earlier=first), CASES, SUITE)
    last = {"date": new(1)["date"], "commit": new(1)["commit"], "cases": ["D"]}
    assert made["earlier"] == [*first, last]
    made = new()
    go_on(made, former(earlier=first, failures=[{"case": "A"}]), CASES, SUITE)
    assert made["earlier"] == [first[1], last]


def test_where_nothing_is_left_the_document_is_the_former_one(tmp_path: Path) -> None:
    before = former(rows=[row for case in "abc" for row in rows(case)], missing=[], complete=True)
    made, path = new(), tmp_path / "some.json"
    left = go_on(made, before, CASES, SUITE)
    assert left == [] and made["earlier"] == []
    assert run_cases(made, left, lambda case: ([], []), path, name=str.upper) == 0
    assert json.loads(path.read_text()) == before


def test_a_run_that_goes_on_ends_complete_and_is_reported_in_the_headline(tmp_path: Path) -> None:
    made, path = new(), tmp_path / "some.json"
    left = go_on(made, former(), CASES, SUITE)
    seen = []

    def measure(case: str) -> tuple[list[Any], list[Any]]:
        seen.append(json.loads(path.read_text())["rows"])
        return rows(case), []

    assert run_cases(made, left, measure, path, name=str.upper) == 0
    assert seen == [[*rows("a"), *rows("b")]], "what was taken over is written before anything is measured"
    found = json.loads(path.read_text())
    assert found["complete"] and found["missing"] == []
    shown = "in several runs: 3 cases on 2026-01-01 (1111111111), 1 cases on 2026-01-09 (9999999999)"
    assert dates(found, ROWS) == shown
    assert dates({**found, "rows": [*rows("a"), *rows("b")]}, ROWS) == shown.partition(", 1 cases")[0]
    assert dates({**found, "earlier": []}, ROWS) == dates(before_there_was_the_field(found), ROWS) == "2026-01-09"
    found["earlier"][0]["commit"] = None
    assert "3 cases on 2026-01-01 (no commit known)" in dates(found, ROWS)


def before_there_was_the_field(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != "earlier"}


def test_stopped_before_any_case_the_file_holds_what_was_taken_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, path = new(), tmp_path / "some.json"
    left = go_on(made, before_there_was_the_field(former()), CASES, SUITE)
    run_cases(made, left, lambda case: ([], []), path, name=str.upper, limit=1, seconds=lambda case: 2.0)
    found = json.loads(path.read_text())
    assert found["missing"] == ["C"] and not found["complete"] and len(found["rows"]) == 4
    assert f"0 of 1 cases; {path} holds the cases that were done" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": {"name": "other"}}, "resume: got device {'name': 'other'}; expected what is measured now, "),
        ({"versions": {}}, "resume: got versions {}; expected what is measured now, {'torch': '2'}"),
        ({"rows": rows("e")}, "resume: got rows of 'E'; expected those of the cases of this run alone"),
        ({"rows": [{"case": "a"}]}, "resume: got a file without 'of'; expected one of this suite"),
    ],
    ids=["device", "versions", "other case", "other suite"],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    made = new()
    with pytest.raises(ValueError, match="resume: ") as caught:
        go_on(made, former(**changes), CASES, SUITE)
    assert str(caught.value).startswith(message)
    assert made == new()


def test_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    resuming.add_argument(parser)
    path = tmp_path / "some.json"

    def left(*arguments: str) -> list[str]:
        return cases_left(parser, parser.parse_args(arguments).resume, new(), CASES, SUITE)

    assert left() == CASES
    for text, message in ((None, "No such file"), ("{", "no valid JSON"), ('{"schema": 0}', "got schema 0")):
        if text is not None:
            path.write_text(text)
        with pytest.raises(SystemExit, match="2"):
            left("--resume", str(path))
        error = capsys.readouterr().err
        assert "error: --resume: " in error and message in error
    results.save(former(), path)
    assert left("--resume", str(path)) == ["c"]
    assert f"taken over from {path}: 3 cases; left: 1" in capsys.readouterr().out


FOLDER = results.RESULTS / "nvidia-h100-80gb-hbm3"
COMMITTED: dict[str, tuple[list[Any], Suite[Any]]] = {
    "models": (models.cases(torch.device("cuda")), models.SUITE),
    "compiled": (list(compiled.CASES["cuda"]), compiled.resumable(compiled.IMPLEMENTATIONS)),
    "triton-op": (triton_op.cases(), triton_op.resumable(triton_op.IMPLEMENTATIONS)),
    "kernels": (gpu.cases(), bench.SUITE),
    "scaling": (scaling.points("cuda", GPU["cache_bytes"]), scaling_document.SUITE),
}


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_files_can_be_gone_on_from(name: str) -> None:
    cases, suite = COMMITTED[name]
    before: Any = results.load(FOLDER / f"{name}.json")
    empty = {field: [] for field in ("earlier", "failures", *suite.rows)}
    made = {**copy.deepcopy(before), **empty, "date": "2027", "complete": False}
    left = {suite.name(case) for case in go_on(made, before, cases, suite)}
    done = {suite.name(case) for case in cases} - left
    failed = set(suite.failed(before))
    assert done and left >= {*before.get("missing", []), *failed}
    for field, name_of in suite.rows.items():
        assert made[field] == [row for row in before[field] if name_of(row) in done]
    of_runs = [name for run in made["earlier"] for name in run["cases"]]
    assert sorted(of_runs) == sorted(done) if left else made["date"] == before["date"]


@pytest.mark.parametrize("name", COMMITTED)
def test_cases_have_names_of_their_own(name: str) -> None:
    cases, suite = COMMITTED[name]
    assert len({suite.name(case) for case in cases}) == len(cases)


def test_rows_are_called_as_their_cases() -> None:
    for one in models.cases(torch.device("cuda")):
        if isinstance(one, Search):
            found = {"network": one.network, "precision": one.precision}
            assert models.ROWS["largest"](found) == one.label
        else:
            row = {**vars(one), "pass": one.pass_}
            assert models.ROWS["rows"](row) == one.label
    for case in (*compiled.CASES["cpu"], *compiled.CASES["cuda"]):
        assert compiled.label_of({"network": case.name, "how": case.how, "batch": case.batch}) == case.label
    assert compiled.label_of({"network": "dense", "batch": 64}) == compiled.DENSE.label
    assert compiled.label_of({"network": "gone", "how": "CUDA graphs", "batch": 3}) == "gone, CUDA graphs, 3"
    for traced in triton_op.cases():
        row = {**vars(traced), "shape": [traced.rows, triton_op.FEATURES], "dtype": traced.dtype_name}
        assert triton_op.label_of(row) == traced.label


def test_of_a_search_that_had_no_time_another_is_made() -> None:
    of = next(one for one in models.cases(torch.device("cuda")) if isinstance(one, Search))
    found = {"network": of.network, "precision": of.precision, "batch": 800, "too_large": 808, "tries": 4}
    document = {"failures": [], "rows": [], "largest": [found]}
    assert list(models.SUITE.failed(document)) == []
    for change in ({"too_large": 816}, {"too_large": None}):
        assert list(models.SUITE.failed({**document, "largest": [{**found, **change}]})) == [of.label]


def test_a_failure_of_a_point_is_of_its_axis() -> None:
    (point,) = (p for p in scaling.points("cuda", GPU["cache_bytes"]) if p.axis == scaling.CAPS and p.caps == 64
                and p.dtype == torch.bfloat16)  # fmt: skip
    failure = {"case": point.name, "dtype": point.dtype_name, "threads": None, "axis": scaling.CAPS}
    failed = scaling_document.SUITE.failed
    assert list(failed({"failures": [failure]})) == [scaling_document.SUITE.name(point)]
    del failure["axis"]
    # As the files were before: it may be of both.
    assert len(set(failed({"failures": [failure]}))) == 2
