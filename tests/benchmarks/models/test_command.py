"""python -m benchmarks.models: the file at every end, what is left out, tables, targets and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import report
from benchmarks.gpu import document as gpu_document
from benchmarks.harness import implementations as c
from benchmarks.harness import machine as results
from benchmarks.models import __main__ as command
from benchmarks.models import suite, tables
from benchmarks.models.document import FILE_NAME, Document, folder_of, new_document
from benchmarks.models.implementations import FUSED, IMPLEMENTATIONS, IN_PLACE, OURS, RELU
from benchmarks.models.largest import Search
from benchmarks.models.steps import COMPILED, INFERENCE, TRAIN
from benchmarks.models.targets import TARGETS, Target, evaluate
from benchmarks.resuming import go_on
from benchmarks.running import INTERRUPTED, NO_TIME, OUT_OF_TIME
from tests.benchmarks.gpu.conftest import GPU
from tests.benchmarks.models.conftest import BUDGET, TINY


@pytest.fixture(autouse=True)
def little_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CPU_BUDGET", "QUICK"):
        monkeypatch.setattr(command, name, BUDGET)


def run(*options: str) -> int:
    return command.main(["--device", "cpu", "--threads", "1", *options])


def read(folder: Path) -> Any:
    return results.load(folder / FILE_NAME)


LABELS = [f"{TINY}, {rest}, batch 6" for rest in (
    "full, fp32, eager, train step", "full, fp32, eager, inference", "head, fp32, eager, train step"
)]  # fmt: skip


def test_complete_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--out", str(tmp_path)) == 0
    made = read(tmp_path)
    assert set(made) == set(Document.__annotations__)
    assert made["complete"] and made["missing"] == [] and made["failures"] == []
    assert (made["threads"], made["quick"], made["largest"]) == (1, False, [])
    assert made["versions"]["torch"] == torch.__version__ and "torchvision" in made["versions"]
    assert len(made["rows"]) == len(IMPLEMENTATIONS) + 2 + 3
    printed = capsys.readouterr().out
    assert f"[1/3] {LABELS[0]}" in printed and "Times, ms" in printed and str(tmp_path / FILE_NAME) in printed


def test_what_does_not_fit_the_limit_is_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = suite.ON_A_CPU
    monkeypatch.setattr(suite, "ON_A_CPU", (first, (*second[:-1], 1e6), third))
    assert run("--out", str(tmp_path), "--limit", "1000") == OUT_OF_TIME
    made = read(tmp_path)
    assert not made["complete"] and made["missing"] == [LABELS[1]]
    assert {row["pass"] for row in made["rows"]} == {TRAIN} and {row["variant"] for row in made["rows"]} == {
        "full",
        "head",
    }
    captured = capsys.readouterr()
    assert f"left out: {LABELS[1]}: it takes about 1000000 s" in captured.out
    assert "not all cases: 1 missing" in captured.out
    assert "stopped at the limit of 1000 s: 2 of 3 cases" in captured.err


def test_implementations_without_time_make_a_run_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_case = suite.run_case

    def short(case: suite.Case, *rest: Any) -> Any:
        rows, _ = run_case(case, *rest)
        return rows[1:], [{"case": case.label, "implementation": rows[0]["implementation"], "reason": NO_TIME}]

    monkeypatch.setattr(suite, "run_case", short)
    assert run("--out", str(tmp_path), "--limit", "1000") == OUT_OF_TIME
    made = read(tmp_path)
    assert not made["complete"] and len(made["failures"]) == 3


def test_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_case = suite.run_case
    seen = []

    def noted(case: suite.Case, *rest: Any) -> Any:
        seen.append(case.label)
        return run_case(case, *rest)

    def short(case: suite.Case, *rest: Any) -> Any:
        rows, failures = run_case(case, *rest)
        if case.label != LABELS[1]:
            return rows, failures
        return rows[:1], [{"case": case.label, "implementation": rows[1]["implementation"], "reason": NO_TIME}]

    first, second, third = suite.ON_A_CPU
    with monkeypatch.context() as patched:
        patched.setattr(suite, "ON_A_CPU", (first, second, (*third[:-1], 1e6)))
        patched.setattr(suite, "run_case", short)
        assert run("--out", str(tmp_path), "--limit", "1000") == OUT_OF_TIME
    former = read(tmp_path)
    assert former["missing"] == [LABELS[2]] and len(former["failures"]) == 1
    monkeypatch.setattr(suite, "run_case", noted)
    # Into the same file, which is read first.
    assert run("--out", str(tmp_path), "--resume", str(tmp_path / FILE_NAME)) == 0
    made = read(tmp_path)
    assert seen == LABELS[1:]
    assert made["complete"] and made["missing"] == made["failures"] == []
    assert made["earlier"] == [{"date": former["date"], "commit": former["commit"], "cases": LABELS[:1]}]
    assert len(made["rows"]) == len(IMPLEMENTATIONS) + 2 + 3 and made["rows"][:3] == former["rows"][:3]
    assert "in several runs: 1 cases on " in capsys.readouterr().out
    assert run("--out", str(tmp_path / "again"), "--resume", str(tmp_path / FILE_NAME)) == 0
    assert read(tmp_path / "again") == made and seen == LABELS[1:]
    with pytest.raises(SystemExit, match="2"):
        run("--threads", "2", "--resume", str(tmp_path / FILE_NAME))
    assert "--resume: resume: got threads 1; expected what is measured now, 2" in capsys.readouterr().err


def test_largest_batches_are_taken_over(tmp_path: Path, document: Document) -> None:
    of = [one for one in suite.cases(torch.device("cuda")) if isinstance(one, Search) and one.network == "resnet50"]
    found = [{**document["largest"][0], "implementation": name, "too_large": 808} for name in of[0].implementations]
    made: Document = {**document, "rows": [], "largest": []}
    former = {**document, "rows": [], "largest": found}
    assert go_on(made, former, of, suite.SUITE) == [] and made["largest"] == found
    assert go_on(made, {**former, "largest": found[1:]}, of, suite.SUITE) == of and made["largest"] == []


def test_interruption_leaves_the_cases_that_were_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_case = suite.run_case

    def interrupted(case: suite.Case, *rest: Any) -> Any:
        if case.label == LABELS[1]:
            raise KeyboardInterrupt
        return run_case(case, *rest)

    monkeypatch.setattr(suite, "run_case", interrupted)
    assert run("--out", str(tmp_path)) == INTERRUPTED
    made = read(tmp_path)
    assert not made["complete"] and made["missing"] == LABELS[1:]
    assert {row["pass"] for row in made["rows"]} == {TRAIN}


def test_a_case_that_fails_is_recorded_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_case = suite.run_case

    def broken(case: suite.Case, *rest: Any) -> Any:
        if case.label == LABELS[0]:
            raise RuntimeError("no kernel image")
        return run_case(case, *rest)

    monkeypatch.setattr(suite, "run_case", broken)
    assert run("--out", str(tmp_path)) == 0
    made = read(tmp_path)
    assert made["failures"] == [{"case": LABELS[0], "implementation": None, "reason": "RuntimeError: no kernel image"}]
    assert len(made["rows"]) == 5
    monkeypatch.setattr(suite, "run_case", lambda *_: ([], [{"case": "x", "implementation": None, "reason": "why"}]))
    assert run("--out", str(tmp_path)) == 1, "nothing at all was measured"


def test_algorithms_are_searched_for_while_timing_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(suite, "run_case", lambda *_: (seen.append(torch.backends.cudnn.benchmark), ([], []))[1])
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    run("--out", str(tmp_path))
    assert seen == [True] * 3 and torch.backends.cudnn.benchmark is False


def test_quick_runs_write_nothing_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(suite, "cases", lambda device, quick: [suite._case(*suite.ON_A_CPU[1], small=True)])
    assert run("--quick") == 0
    assert list(tmp_path.iterdir()) == []
    assert run("--quick", "--out", str(tmp_path / "some")) == 0
    assert read(tmp_path / "some")["quick"] is True
    assert run() == 0
    (path,) = tmp_path.glob("*-cores/*")
    assert path == folder_of(read(path.parent)) / FILE_NAME


def test_a_gpu_has_its_own_folder() -> None:
    made = new_document(torch.device("cpu"), quick=False)
    assert folder_of({**made, "device": GPU}) == gpu_document.folder_of(GPU)
    assert json.loads(json.dumps(made)) == made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "0"], "--threads: got 0; expected at least 1"),
        (["--limit", "0"], "--limit: got 0.0; expected more than 0 seconds"),
        (["--networks", "vgg"], "invalid choice: 'vgg'"),
        (["--modes", "compiled"], "--networks, --implementations, --modes: no case is left of them"),
    ],
)
def test_bad_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(*options)
    assert message in capsys.readouterr().err


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        command.main(["--device", "cuda"])
    assert "sees no CUDA device" in capsys.readouterr().err


def row(implementation: str, **changes: Any) -> suite.Row:
    made: dict[str, Any] = {
        **dict.fromkeys(suite.Row.__annotations__), "network": "resnet50", "variant": "full", "precision": "AMP bf16",
        "mode": COMPILED, "pass": TRAIN, "implementation": implementation, "batch": 64, "image": 224, "ms": 20.0,
        "q1_ms": 20.0, "q3_ms": 20.0, "min_ms": 20.0, "samples": 9, **changes,
    }  # fmt: skip
    return made  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("ours", "noise", "met"), [(20.0, 0.0, True), (19.0, 0.0, True), (20.2, 0.0, False), (20.2, 0.3, True)]
)
@pytest.mark.parametrize("name", [FUSED, IN_PLACE])
def test_the_target_of_a_compiled_model(name: str, ours: float, noise: float, met: bool) -> None:
    rows = [row(c.RELU_MINIMUM.name, q3_ms=20.0 + noise), row(name, ms=ours, q1_ms=ours, q3_ms=ours), row(RELU, ms=1.0)]
    (verdict,) = evaluate(Target(TRAIN), rows)
    assert verdict.measured == pytest.approx(ours / 20) and verdict.noise == pytest.approx(noise / 20)
    assert verdict.met is met


def test_the_target_is_for_compiled_rows_of_one_case() -> None:
    theirs = row(c.RELU_MINIMUM.name)
    for other in (
        row(FUSED, mode="eager"), row(OURS), row(FUSED, network="mobilenet_v2"), row(FUSED, batch=256),
        row(FUSED, **{"pass": INFERENCE}),
    ):  # fmt: skip
        assert evaluate(Target(TRAIN), [theirs, other]) == []
    assert evaluate(Target(TRAIN), [row(c.RELU_MINIMUM.name, mode="eager"), row(FUSED, mode="eager")]) == []
    assert {target.limit for target in TARGETS} == {1.0} and {target.pass_ for target in TARGETS} == {TRAIN, INFERENCE}


@pytest.fixture
def document() -> Document:
    rows = [
        row(RELU, ratio_to_relu=1.0, peak_bytes=3_000_000_000, host_ms=12.5),
        row(c.RELU_MINIMUM.name, ms=44.0, ratio_to_relu=2.2, peak_bytes=4_500_000_000, host_ms=13.0),
        row(FUSED, ms=50.0, ratio_to_relu=2.5, peak_bytes=3_000_000_000, host_ms=14.0),
        row(OURS, mode="eager", saved_bytes=12_345_678),
    ]
    found: Any = {
        "network": "resnet50", "precision": "AMP bf16", "implementation": RELU, "image": 224, "batch": 800,
        "too_large": 816, "tries": 4, "bytes_per_image": 9.1e7,
    }  # fmt: skip
    made = new_document(torch.device("cpu"), quick=False)
    return {**made, "device": GPU, "rows": rows, "largest": [found], "complete": True}


def test_tables(document: Document) -> None:
    found = {table.title: table for table in tables.all_tables(document)}
    for table in found.values():
        assert all(len(line) == len(table.header) for line in table.rows)
    (compiled, eager) = found["Times, ms"].rows
    assert compiled[:4] == ("resnet50, full, AMP bf16, compiled, train step", "64 x 224 px", "20", "44 (2.20)")
    assert eager[2 + IMPLEMENTATIONS.index(OURS)] == "20"
    assert found["Memory, MB"].rows[0][2:4] == ("3000", "4500")
    assert "saved 12.3" in found["Memory, MB"].rows[1]
    assert len(found["Time of the host to launch it, ms"].rows) == 1
    assert found["Largest batch"].rows == [
        ("resnet50, AMP bf16, train step, 224 px", RELU, "800", "816", "91.0"),
    ]
    assert found["Targets"].rows[0][-1] == "**missed** in 1 of 1"
    assert "Some GPU 80GB, driver 580.1" in tables.headline(document)
    assert "3 missing" in tables.headline({**document, "complete": False, "missing": ["a", "b", "c"]})


def test_report(tmp_path: Path, document: Document, capsys: pytest.CaptureFixture[str]) -> None:
    results.save(document, tmp_path / "some" / FILE_NAME)
    path = tmp_path / "text.md"
    path.write_text("<!-- report:models:begin -->\n<!-- report:models:end -->\n")
    assert report.main([str(path), "--results", str(tmp_path)]) == 0
    text = path.read_text()
    assert "| resnet50, full, AMP bf16, compiled, train step | 64 x 224 px | 20 | 44 (2.20) |" in text
    assert report.main([str(path), "--results", str(tmp_path), "--check"]) == 0
    path.write_text(text.replace("44 (2.20)", "22 (1.10)"))
    assert report.main([str(path), "--results", str(tmp_path), "--check"]) == 1
    assert f"{path}: not what the result files give" in capsys.readouterr().err


def test_every_document_with_marks_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks" / "part").mkdir(parents=True)
    marks = "<!-- report:models:begin -->\n<!-- report:models:end -->\n"
    for name, text in (
        ("README.md", marks),
        ("docs/a.md", "no marks\n"),
        ("docs/b.md", marks),
        ("benchmarks/part/README.md", marks),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    expected = [tmp_path / "README.md", tmp_path / "docs" / "b.md", tmp_path / "benchmarks" / "part" / "README.md"]
    assert report.marked_documents() == expected
    options = ["--results", str(tmp_path)]
    assert report.main(options) == 0
    assert report.main([*options, "--check"]) == 0
    assert (tmp_path / "docs" / "a.md").read_text() == "no marks\n"
    (tmp_path / "docs" / "b.md").write_text(marks)
    assert report.main([*options, "--check"]) == 1
