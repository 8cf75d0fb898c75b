"""The loop of all suites: what is in the file at every end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import running
from benchmarks.running import INTERRUPTED, OUT_OF_TIME, run_cases
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[2]


def document() -> dict[str, Any]:
    return {"rows": [], "failures": [], "complete": False}


def run(made: dict[str, Any], measure: Any, output: Path | None, limit: float | None = None) -> int:
    return run_cases(made, ["a", "b", "c"], measure, output, name=str.upper, limit=limit)


def test_every_case_is_saved_as_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.json"
    seen = []

    def measure(case: str) -> tuple[list[str], list[Any]]:
        seen.append(json.loads(path.read_text())["rows"] if path.exists() else None)
        return [case], [{"implementation": None, "reason": "why"}] if case == "b" else []

    assert run(document(), measure, path) == 0
    assert seen == [None, ["a"], ["a", "b"]]
    found = json.loads(path.read_text())
    assert found == {
        "rows": ["a", "b", "c"],
        "failures": [{"implementation": None, "reason": "why"}],
        "complete": True,
    }
    printed = capsys.readouterr().out
    assert "not measured: B: all: why" in printed
    assert [line[:7] for line in printed.splitlines() if line.startswith("[")] == ["[1/3] A", "[2/3] B", "[3/3] C"]


def test_no_file_unless_asked(tmp_path: Path) -> None:
    made = document()
    assert run(made, lambda case: ([case], []), None) == 0
    assert made["complete"] and made["rows"] == ["a", "b", "c"]


def test_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.json"

    def measure(case: str) -> tuple[list[str], list[Any]]:
        if case == "b":
            raise KeyboardInterrupt
        return [case], []

    assert run(document(), measure, path) == INTERRUPTED
    assert json.loads(path.read_text()) == {"rows": ["a"], "failures": [], "complete": False}
    assert f"interrupted: 1 of 3 cases; {path} holds the cases that were done" in capsys.readouterr().err


def test_interrupted_in_the_first_case_the_old_file_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.json"
    path.write_text("old")

    def measure(case: str) -> tuple[list[str], list[Any]]:
        raise KeyboardInterrupt

    assert run(document(), measure, path) == INTERRUPTED
    assert path.read_text() == "old"
    assert "holds" not in capsys.readouterr().err


def test_no_case_is_begun_after_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.json"
    now = [100.0]
    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])

    def measure(case: str) -> tuple[list[str], list[Any]]:
        now[0] += 6
        return [case], []

    assert run(document(), measure, path, limit=10) == OUT_OF_TIME
    assert json.loads(path.read_text()) == {"rows": ["a", "b"], "failures": [], "complete": False}
    assert "stopped at the limit of 10 s: 2 of 3 cases" in capsys.readouterr().err
    now[0] = 0.0
    assert run(document(), measure, path, limit=20) == 0


def test_a_case_that_would_not_end_before_the_limit_is_left_out_and_shorter_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.json"
    now = [100.0]
    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])
    missing: list[list[str]] = []

    def measure(case: str) -> tuple[list[str], list[Any]]:
        missing.append(list(made["missing"]))
        now[0] += {"a": 6, "c": 3}[case]
        return [case], []

    made = {**document(), "missing": []}
    takes = {"a": 6.0, "b": 5.0, "c": 4.0}
    code = run_cases(made, list("abc"), measure, path, name=str.upper, limit=10, seconds=takes.__getitem__)
    assert code == OUT_OF_TIME
    assert missing == [["A", "B", "C"], ["B", "C"]]
    found = json.loads(path.read_text())
    assert (found["rows"], found["missing"], found["complete"]) == (["a", "c"], ["B"], False)
    captured = capsys.readouterr()
    assert "left out: B: it takes about 5 s" in captured.out
    assert "stopped at the limit of 10 s: 2 of 3 cases" in captured.err


def test_a_case_that_left_something_out_for_time_is_not_complete() -> None:
    made = document()
    failures = [{"implementation": "x", "reason": running.NO_TIME}]
    code = run_cases(made, ["a"], lambda case: ([case], failures), None, name=str, limit=10)
    assert code == OUT_OF_TIME and not made["complete"]


def test_no_cases_are_a_complete_run() -> None:
    made = document()
    assert run_cases(made, [], lambda case: ([], []), None, name=str) == 0
    assert made["complete"]


PROGRAM = """
import sys, time
from pathlib import Path
from benchmarks.running import run_cases

def measure(case):
    if case == 3:
        print("begun", flush=True)
        time.sleep(3600)
    return [{"case": case}], []

document = {"rows": [], "failures": [], "complete": False}
sys.exit(run_cases(document, range(5), measure, Path(sys.argv[1]), name=str))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_leaves_a_valid_file(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
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
    found = json.loads(path.read_text())
    assert [row["case"] for row in found["rows"]] == [0, 1, 2]
    assert not found["complete"]
    assert "interrupted: 3 of 5 cases" in errors
    assert list(tmp_path.iterdir()) == [path]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run(document(), lambda case: ([case], []), None) == 0
    captured = capsys.readouterr()
    assert "3/3" in captured.err and "C:" in captured.err
    assert "[1/3]" not in captured.out
