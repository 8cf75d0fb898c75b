"""The command line and the loop of all benchmarks: which cases, and what is in the file at every end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.harness import cli, machine
from benchmarks.harness.cli import INTERRUPTED, OUT_OF_TIME, Bench, Run, main
from benchmarks.harness.machine import Platform
from benchmarks.harness.records import NO_TIME, load
from benchmarks.harness.table import Column, pivot
from dreluop.backends import native
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    label: str
    implementations: tuple[str, ...] = ("x", "torch.compile x")
    seconds: float = 0.0


CASES = (Case("a"), Case("b"), Case("c"))


def rows(case: Case, run: Run) -> list[dict[str, Any]]:
    return [{"implementation": name, "ms": 1.0} for name in case.implementations]


BENCH = Bench(
    "some", "Some benchmark.", lambda kind, settings: CASES[:1] if settings["quick"] else CASES, rows,
    ("implementation",), lambda record: f"headline, {record.when()}",
    lambda record: [pivot("Times", record.frame(), ["case"], [Column("case", "case"), Column("time", "ms", "{:.2f}")])],
)  # fmt: skip


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all results."""
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def run(*options: str, bench: Bench = BENCH) -> int:
    return main(bench, ["--device", "cpu", "--threads", "1", *options])


def cases_of(path: Path) -> list[str]:
    return list(load(path).cases())


def test_complete_run(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    (path,) = results.glob("*/some.jsonl")
    record = load(path)
    assert path == machine.folder_of(record.run["device"]) / "some.jsonl"
    assert cases_of(path) == ["a", "b", "c"] and BENCH.missing(record) == []
    assert record.run["settings"] == {"quick": False, "threads": 1}
    assert record.run["versions"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert "[1/3] a: " in printed and "1.00" in printed and "headline" in printed and f"written: {path}" in printed


def test_every_case_is_saved_as_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.jsonl"
    seen = []

    def measure(case: Case, run: Run) -> list[dict[str, Any]]:
        seen.append(cases_of(path) if path.exists() else None)
        return [*rows(case, run), *([{"implementation": None, "failure": "why"}] if case.label == "b" else [])]

    assert run("--out", str(tmp_path), bench=replace(BENCH, run=measure)) == 0
    assert seen == [None, ["a"], ["a", "b"]]
    assert [failure["failure"] for failure in load(path).failures] == ["why"]
    assert "not measured: b: all: why" in capsys.readouterr().out


def test_no_file_of_a_part_unless_asked(results: Path, tmp_path: Path) -> None:
    for options in (["--quick"], ["--cases", "a"], ["--implementations", "x"]):
        assert run(*options) == 0
        assert not results.exists()
    assert run("--quick", "--out", str(tmp_path / "new" / "file.jsonl")) == 0
    assert cases_of(tmp_path / "new" / "file.jsonl") == ["a"]


def test_some_cases_and_implementations(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Case] = []

    def measure(case: Case, run: Run) -> list[dict[str, Any]]:
        seen.append(case)
        return rows(case, run)

    timed = replace(BENCH, cases=lambda kind, settings: [replace(case, seconds=4) for case in CASES], run=measure)
    run("--cases", "[ab]", "--no-compile", bench=timed)
    run("--cases", "c", "b*", "--implementations", "torch*", bench=timed)
    assert [(case.label, case.implementations, case.seconds) for case in seen] == [
        *((label, ("x",), 2) for label in "ab"),
        *((label, ("torch.compile x",), 2) for label in "bc"),
    ]
    with pytest.raises(SystemExit, match="2"):
        run("--cases", "d")
    assert "--cases, --implementations: got patterns that no case matches" in capsys.readouterr().err


def test_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.jsonl"

    def measure(case: Case, run: Run) -> list[dict[str, Any]]:
        if case.label == stop:
            raise KeyboardInterrupt
        return rows(case, run)

    stop, bench = "b", replace(BENCH, run=measure)
    assert run("--out", str(tmp_path), bench=bench) == INTERRUPTED
    assert cases_of(path) == ["a"] and BENCH.missing(load(path)) == ["b", "c"]
    assert f"interrupted: 1 of 3 cases; {path} holds the cases that were done" in capsys.readouterr().err
    path.write_text("old")
    stop = "a"
    assert run("--out", str(tmp_path), bench=bench) == INTERRUPTED
    assert path.read_text() == "old", "in the first case the old file stays"
    assert "holds" not in capsys.readouterr().err


def test_a_case_that_would_not_end_before_the_limit_is_left_out_and_shorter_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])

    def measure(case: Case, run: Run) -> list[dict[str, Any]]:
        now[0] += {"a": 6, "c": 3}[case.label]
        return rows(case, run)

    takes = [Case("a", seconds=6), Case("b", seconds=5), Case("c", seconds=4)]
    bench = replace(BENCH, cases=lambda kind, settings: takes, run=measure)
    assert run("--out", str(tmp_path), "--limit", "10", bench=bench) == OUT_OF_TIME
    assert cases_of(tmp_path / "some.jsonl") == ["a", "c"]
    captured = capsys.readouterr()
    assert "left out: b: it takes about 5 s" in captured.out
    assert "stopped at the limit of 10 s: 2 of 3 cases" in captured.err


def test_no_case_is_begun_after_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])

    def measure(case: Case, run: Run) -> list[dict[str, Any]]:
        now[0] += 6
        return rows(case, run)

    bench = replace(BENCH, run=measure)
    assert run("--out", str(tmp_path), "--limit", "10", bench=bench) == OUT_OF_TIME
    assert cases_of(tmp_path / "some.jsonl") == ["a", "b"]
    assert run("--out", str(tmp_path / "all"), "--limit", "20", bench=bench) == 0


def test_a_case_that_left_something_out_for_time_makes_a_run_incomplete(tmp_path: Path) -> None:
    def measure(case: Case, run: Run) -> list[dict[str, Any]]:
        return [rows(case, run)[0], {"implementation": "torch.compile x", "failure": NO_TIME}]

    assert run("--out", str(tmp_path), "--limit", "100", bench=replace(BENCH, run=measure)) == OUT_OF_TIME
    assert len(load(tmp_path / "some.jsonl").failures) == 3


def test_where_nothing_is_measured_the_command_fails(tmp_path: Path) -> None:
    bench = replace(BENCH, run=lambda case, run: [{"implementation": None, "failure": "why"}])
    assert run("--out", str(tmp_path), bench=bench) == 1


def test_what_a_benchmark_does_at_the_end_gives_an_exit_code(tmp_path: Path) -> None:
    seen: list[Any] = []
    bench = replace(BENCH, finish=lambda record, output: seen.append((len(record.rows), output)) or 4)
    assert run("--out", str(tmp_path), bench=bench) == 4
    assert run("--quick", bench=bench) == 4
    assert seen == [(6, tmp_path / "some.jsonl"), (2, None)]


def test_a_run_that_resumes(tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []

    def measure(case: Case, run: Run) -> list[dict[str, Any]]:
        seen.append(case.label)
        if case.label == stop:
            raise KeyboardInterrupt
        return rows(case, run)

    stop, bench = "c", replace(BENCH, run=measure)
    assert run(bench=bench) == INTERRUPTED
    (path,) = results.glob("*/some.jsonl")
    former = load(path)
    seen.clear()
    stop = "none"
    # By default from the device's folder, and into the same file, which is read first.
    assert run("--resume", bench=bench) == 0
    assert seen == ["c"]
    assert f"taken over from {path}: 2 cases; left: 1" in capsys.readouterr().out
    made = load(path)
    assert made.rows[:4] == former.rows and len(made.rows) == 6
    assert run("--resume", str(path), "--out", str(tmp_path / "other"), bench=bench) == 0
    assert load(tmp_path / "other" / "some.jsonl") == made and seen == ["c"], "nothing was left"
    with pytest.raises(SystemExit, match="2"):
        run("--threads", "2", "--resume", str(path.parent))
    assert "--resume: resume: got settings {'quick': False, 'threads': 1}; expected" in capsys.readouterr().err


def test_what_was_taken_over_is_written_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--cases", "a", "--out", str(tmp_path / "old"))
    slow = replace(BENCH, cases=lambda kind, settings: [replace(case, seconds=2) for case in CASES])
    options = ["--resume", str(tmp_path / "old"), "--out", str(tmp_path / "new"), "--limit", "1"]
    assert run(*options, bench=slow) == OUT_OF_TIME
    assert cases_of(tmp_path / "new" / "some.jsonl") == ["a"]
    assert "0 of 2 cases; " in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "{", '{"schema": 0}'])
def test_what_cannot_be_resumed_from(text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        run("--resume", str(path))
    error = capsys.readouterr().err
    assert "error: --resume: " in error and ("No such file" if text is None else "no valid record") in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "0"], "--threads: got 0; expected at least 1"),
        (["--limit", "0"], "--limit: got 0.0; expected more than 0 seconds"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_bad_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(*options)
    assert message in capsys.readouterr().err


def test_without_a_gpu_or_its_kernels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        main(BENCH, ["--device", "cuda"])
    assert "torch sees no CUDA device" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(native, "cuda_reason", lambda: "driver too old")
    with pytest.raises(SystemExit, match="2"):
        main(BENCH, [])
    assert "the native CUDA kernels do not serve" in capsys.readouterr().err, "a GPU is the default where there is one"


def test_without_pandas_there_are_no_tables_but_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert run("--out", str(tmp_path)) == 0
    assert cases_of(tmp_path / "some.jsonl") == ["a", "b", "c"]
    assert "no tables here: " in capsys.readouterr().out


def test_threads_are_those_of_the_option(tmp_path: Path) -> None:
    seen = set()
    before = torch.get_num_threads()
    bench = replace(BENCH, run=lambda case, run: seen.add(torch.get_num_threads()) or rows(case, run))
    run("--threads", str(before + 2), "--out", str(tmp_path), bench=bench)
    assert seen == {before + 2} and torch.get_num_threads() == before


def test_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    assert "kernels, models, compiled" in capsys.readouterr().out
    assert command.main(["nothing"]) == 2
    assert "NAME is one of kernels" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        command.main(["memory", "--help"])
    assert "python -m benchmarks memory" in capsys.readouterr().out


PROGRAM = """
import sys, time
from pathlib import Path
from benchmarks.harness.cli import Run, measure
from benchmarks.harness.machine import Platform
from tests.benchmarks.test_cli import BENCH, Case, replace

def run(case, run):
    if case.label == "3":
        print("begun", flush=True)
        time.sleep(3600)
    return [{"implementation": "x", "ms": 1.0}]

cases = [Case(str(number)) for number in range(5)]
bench = replace(BENCH, run=run)
record = bench.new_record(Platform())
sys.exit(measure(bench, record, cases, Run(Platform()), Path(sys.argv[1])))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_leaves_a_valid_file(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 (one thread)
    )
    assert process.stdout is not None
    while "begun" not in (line := process.stdout.readline()):
        assert line, "it ended early"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == INTERRUPTED
    assert cases_of(path) == ["0", "1", "2"]
    assert "interrupted: 3 of 5 cases" in errors
    assert list(tmp_path.iterdir()) == [path]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert cli.measure(BENCH, BENCH.new_record(Platform()), CASES, Run(Platform()), None) == 0
    captured = capsys.readouterr()
    assert "3/3" in captured.err and "c:" in captured.err
    assert "[1/3]" not in captured.out
