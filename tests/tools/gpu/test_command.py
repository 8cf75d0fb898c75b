"""`make gpu` without a GPU; stages with one that is not there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness.machine import Gpu, folder_of
from tests.support.patience import PATIENCE
from tests.tools.gpu.limits import limit_is_reached_when
from tools.gpu import __main__ as command
from tools.gpu import execute
from tools.gpu.record import FAILED, NOT_RUN, PASSED, Outcome, Record
from tools.gpu.stages import LIMIT, STAGES, Context

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_says_so_and_ends_with_2_without_a_gpu() -> None:
    # Under `make test` an inner make would speak of folders.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "gpu", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0].startswith("No CUDA device: torch ")


def test_exit_code_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_unknown_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["--stage", "build,fly"])
    expected = (
        "--stage: got 'fly'; expected some of build, smoke, tests, sanitize, graphs, large, bench, scaling, batch-norm"
    )
    assert expected in capsys.readouterr().err


class Fakes:
    """Stages that note when they run."""

    def __init__(self, folder: Path, outcomes: dict[str, Any]) -> None:
        self.folder, self.outcomes = folder, outcomes
        self.ran: list[str] = []
        self.found_before: dict[str, set[str]] = {}
        self.limits: dict[str, float] = {}

    def stages(self) -> dict[str, Any]:
        return {name: lambda context, name=name: self.run(name, context) for name in self.outcomes}

    def run(self, name: str, context: Context) -> Outcome:
        self.ran.append(name)
        self.limits[name] = context.limit
        self.found_before[name] = {path.name for path in self.folder.glob("*.json")}
        outcome = self.outcomes[name]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


OK = Outcome(PASSED)


def run(fakes: Fakes, gpu: Gpu, limit: float | None = None) -> list[Record]:
    return command.run(fakes.stages(), Context(gpu, fakes.folder, LIMIT), limit)


def test_records_are_written_as_each_stage_ends(tmp_path: Path, gpu: Gpu) -> None:
    outcomes = {"build": OK, "smoke": Outcome(FAILED, "wrong"), "tests": ValueError("broken"), "bench": OK}
    fakes = Fakes(tmp_path, outcomes)
    run(fakes, gpu)
    assert fakes.found_before == {
        "build": set(),
        "smoke": {"stage-build.json"},
        "tests": {"stage-build.json", "stage-smoke.json"},
        "bench": {"stage-build.json", "stage-smoke.json", "stage-tests.json"},
    }
    found = {name: json.loads((tmp_path / f"stage-{name}.json").read_text()) for name in outcomes}
    assert [(r["stage"], r["status"], r["reason"]) for r in found.values()] == [
        ("build", PASSED, None),
        ("smoke", FAILED, "wrong"),
        ("tests", FAILED, "ValueError: broken"),
        ("bench", PASSED, None),
    ]
    for record in found.values():
        assert set(record) >= {"seconds", "date", "commit", "details"}
        assert record["device"] == gpu
        assert record["versions"]["torch"] == torch.__version__


def test_nothing_runs_after_a_failed_build(tmp_path: Path, gpu: Gpu) -> None:
    fakes = Fakes(tmp_path, {"build": Outcome(FAILED, "no nvcc"), "smoke": OK, "bench": OK})
    records = run(fakes, gpu)
    assert fakes.ran == ["build"]
    assert [(r["status"], r["reason"]) for r in records[1:]] == [(NOT_RUN, "the build failed")] * 2
    assert json.loads((tmp_path / "stage-bench.json").read_text())["status"] == NOT_RUN


def test_a_limit_of_the_whole_run(tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 50.0, 50.0, 95.0, 95.0, 95.0])
    monkeypatch.setattr(command.time, "monotonic", lambda: next(clock))
    fakes = Fakes(tmp_path, {"build": OK, "smoke": OK, "tests": OK})
    records = run(fakes, gpu, 100)
    assert fakes.limits == {"build": 100, "smoke": 50}
    assert (records[2]["status"], records[2]["reason"]) == (NOT_RUN, command.NO_TIME)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ({"smoke": OK, "large": Outcome(NOT_RUN, "memory is short")}, 0),
        ({"smoke": Outcome(FAILED, "wrong"), "large": OK}, 1),
        ({"smoke": OK, "large": Outcome(NOT_RUN, command.NO_TIME)}, 1),
    ],
    ids=["not run", "failed", "no time"],
)
def test_exit_code(
    tmp_path: Path,
    gpu: Gpu,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcomes: dict[str, Outcome],
    code: int,
) -> None:
    fakes = Fakes(tmp_path, outcomes)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "describe_gpu", lambda: gpu)
    monkeypatch.setattr(command, "STAGES", {**STAGES, **fakes.stages()})
    # The order is that of the stages, not that of the request.
    assert command.main(["--stage", "large,smoke", "--out", str(tmp_path)]) == code
    assert fakes.ran == ["smoke", "large"]
    printed = capsys.readouterr().out
    for outcome in outcomes.values():
        assert outcome.status + (f": {outcome.reason}" if outcome.reason else "") in printed


@pytest.mark.parametrize("resume", [False, True], ids=["", "resume"])
def test_benchmarks_go_on_from_the_folder_of_the_gpu(
    tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    seen: list[Context] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "describe_gpu", lambda: gpu)
    monkeypatch.setattr(command, "STAGES", {**STAGES, "bench": lambda context: (seen.append(context), OK)[1]})
    assert command.main(["--stage", "bench", "--out", str(tmp_path)] + ["--resume"] * resume) == 0
    assert [(one.folder, one.resume) for one in seen] == [(tmp_path, folder_of(gpu) if resume else None)]


def test_no_quick_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["--resume", "--quick"])
    assert "--resume: got --quick too; expected one of them" in capsys.readouterr().err


ONLY_TORCH = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import tools.gpu.__main__, tests.gpu.exercise, benchmarks.bench_kernels, benchmarks.bench_scaling
"""


def test_torch_is_all_that_it_needs() -> None:
    packages = "numpy,pandas,pydantic,rich,tqdm,matplotlib,yaml,torchvision,mlxtend,scipy,sklearn,triton"
    command = [sys.executable, "-W", "ignore", "-c", ONLY_TORCH, packages]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_passes_it_on() -> None:
    def printed(*variables: str) -> str:
        return subprocess.run(
            ["make", "-n", "gpu", *variables], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    assert "--resume" in printed("RESUME=1") and "--resume" not in printed()


def test_every_stage_is_under_nine_minutes() -> None:
    assert max(LIMIT, *(stage.limit for stage in STAGES.values())) < 9 * 60


@pytest.mark.parametrize(
    ("status", "reason"), [(PASSED, "why"), (FAILED, None), (NOT_RUN, None), ("skipped", "why")], ids=str
)
def test_an_outcome_gives_a_reason_exactly_where_it_did_not_pass(status: str, reason: str | None) -> None:
    with pytest.raises(ValueError, match="got"):
        Outcome(status, reason)


def test_a_stage_that_takes_too_long_is_asked_to_end_and_leaves_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import time\ntry:\n    print('first', flush=True)\n    time.sleep(3600)\n"
        "except KeyboardInterrupt:\n    print('kept', flush=True)\n"
    )
    log = tmp_path / "log.txt"
    limit_is_reached_when(lambda: log.exists() and log.read_text().endswith("first\n"), monkeypatch)
    monkeypatch.setattr(execute, "GRACE", PATIENCE)
    done = execute.execute([sys.executable, "-c", program], limit=3, log=log)
    assert done.timed_out
    assert done.output == "first\nkept\n"
    assert log.read_text().endswith("first\nkept\n")
