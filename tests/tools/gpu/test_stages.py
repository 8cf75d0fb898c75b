"""How the outcome of a stage is read off what its program left."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.bench_compile import CASES
from benchmarks.harness.cli import OUT_OF_TIME
from benchmarks.harness.machine import Gpu
from benchmarks.harness.records import Record
from tests.gpu import exercise
from tests.support.patience import PATIENCE
from tests.tools.gpu.limits import limit_is_reached_when
from tools.gpu import execute as execution
from tools.gpu import pytests, sanitizer, stages
from tools.gpu.execute import Finished
from tools.gpu.record import FAILED, NOT_RUN, PASSED, Outcome

ROOT = Path(__file__).parents[3]
ENDED = "exercise started\nexercise completed\n"
CLEAN = f"========= COMPUTE-SANITIZER\n{ENDED}========= ERROR SUMMARY: 0 errors\n"
RACES = (
    f"========= COMPUTE-SANITIZER\n{ENDED}"
    "========= Error: Race reported between Write access at f and Read access at g [4 hazards]\n"
    "========= RACECHECK SUMMARY: 4 hazards displayed (4 errors, 0 warnings)\n"
)
NO_RACES = f"{ENDED}========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
REFUSED = "========= COMPUTE-SANITIZER\n========= Error: Device not supported. Please refer to the documentation\n"


@pytest.mark.parametrize(
    ("done", "status", "reason"),
    [
        (Finished(0, CLEAN, False), PASSED, None),
        (Finished(0, NO_RACES, False), PASSED, None),
        (Finished(86, RACES, False), FAILED, "RACECHECK SUMMARY: 4 hazards displayed (4 errors, 0 warnings)"),
        (Finished(0, RACES, False), FAILED, "RACECHECK SUMMARY: 4 hazards displayed (4 errors, 0 warnings)"),
        (
            Finished(1, REFUSED + "torch.AcceleratorError: unknown error\n", False),
            NOT_RUN,
            "Error: Device not supported. Please refer to the documentation",
        ),
        (Finished(0, "", False), FAILED, "exit code 0: no output"),
        (Finished(0, ENDED, False), FAILED, "exit code 0: exercise completed"),
        (Finished(0, "========= ERROR SUMMARY: 0 errors\n", False), FAILED, "exit code 0"),
        (Finished(-9, "exercise started\n", True), NOT_RUN, "no result after 100 s"),
        (Finished(1, "exercise started\nValueError: wrong\n", False), FAILED, "exit code 1: ValueError: wrong"),
        (Finished(0, CLEAN.replace(": 0 errors", ": 10 errors"), False), FAILED, "ERROR SUMMARY: 10 errors"),
    ],
    ids=[
        *("clean", "no_races", "races", "races_exit_0", "refused", "silent", "no_summary", "program_did_not_run"),
        *("too_slow", "program_failed", "ten_errors"),
    ],
)
def test_what_a_sanitizer_said(done: Finished, status: str, reason: str | None) -> None:
    outcome = sanitizer.evaluate(done, 100)
    assert outcome.status == status
    assert outcome.reason == reason or (reason is not None and (outcome.reason or "").startswith(reason))


def test_a_refused_tool_never_passes() -> None:
    outcomes = {"memcheck": Outcome(PASSED), "racecheck": Outcome(NOT_RUN, "Device not supported")}
    combined = sanitizer.combine(outcomes)
    assert (combined.status, combined.reason) == (NOT_RUN, "racecheck not run: Device not supported")
    assert combined.details["memcheck"]["status"] == PASSED
    outcomes["synccheck"] = Outcome(FAILED, "1 error")
    assert (sanitizer.combine(outcomes).status) == FAILED
    assert sanitizer.combine({"memcheck": Outcome(PASSED)}).status == PASSED


def fake_tool(tmp_path: Path, text: str, code: int) -> str:
    path = tmp_path / "compute-sanitizer"
    path.write_text(f"#!{sys.executable}\nimport sys\nprint({text!r}, end='')\nprint(sys.argv[1:])\nsys.exit({code})\n")
    path.chmod(0o755)
    return str(path)


def test_all_four_tools_run_and_only_the_slow_one_gets_few_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanitizer, "find_tool", lambda: fake_tool(tmp_path, CLEAN, 0))
    outcome = sanitizer.run(limit=100, log=tmp_path / "log.txt")
    assert outcome.status == PASSED
    commands = re.findall(
        r"--tool (\w+) --error-exitcode 86 .*?exercise( --few)?$", (tmp_path / "log.txt").read_text(), re.M
    )
    # The last one gets the time that the others leave.
    assert commands == [("memcheck", ""), ("initcheck", ""), ("synccheck", ""), ("racecheck", " --few")]
    assert list(outcome.details) == [tool for tool, _ in commands]


def test_no_sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer, "find_tool", lambda: None)
    outcome = sanitizer.run(limit=100, log=tmp_path / "log.txt")
    assert (outcome.status, outcome.reason) == (NOT_RUN, "compute-sanitizer is not installed")


@pytest.mark.parametrize("few", [False, True])
def test_the_program_under_the_sanitizer_calls_every_operator(monkeypatch: pytest.MonkeyPatch, few: bool) -> None:
    import torch  # noqa: PLC0415
    from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC0415

    from dreluop.ops import schemas  # noqa: PLC0415

    called: set[str] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == schemas.NAMESPACE:
                called.add(func._opname)
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(exercise, "CASES", exercise.CASES[6:9])
    with Watch():
        exercise.main(torch.device("cpu"), few=few)
    assert called == {*schemas.SCHEMAS, *schemas.BATCH_NORM}


TESTS = """
import pytest

def test_one(record_property): record_property("gpu", "yes")

@pytest.mark.skip(reason="needs mlxtend, not installed")
def test_two(): pass
"""


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        (TESTS, PASSED, None),
        (TESTS + "\ndef test_three(): assert False\n", FAILED, "1 tests failed, the first: "),
        (TESTS.replace('"gpu"', '"cpu"'), NOT_RUN, "no test of the GPU ran: needs mlxtend, not installed"),
        ("", FAILED, "pytest ended with exit code 5"),
        ("import nothing_of_this_name", FAILED, "1 tests failed"),
    ],
    ids=["passed", "failed", "no_gpu_test", "no_test", "import_error"],
)
def test_pytest_stages(tmp_path: Path, text: str, status: str, reason: str | None) -> None:
    path = tmp_path / "test_some.py"
    path.write_text(text)
    outcome = pytests.run_pytest([str(path)], limit=100, log=tmp_path / "log.txt")
    assert outcome.status == status, outcome
    assert (outcome.reason or "").startswith(reason or "")
    if text.startswith(TESTS):
        assert outcome.details["skipped"] == {"needs mlxtend, not installed": 1}
        assert outcome.details["passed"] == 1


SKIPPED = "import pytest\npytest.skip('it\\'s not there', allow_module_level=True)\n"


def test_a_file_that_is_skipped_as_a_whole_says_why(tmp_path: Path) -> None:
    path = tmp_path / "test_some.py"
    path.write_text(SKIPPED)
    outcome = pytests.run_pytest([str(path)], limit=100, log=tmp_path / "log.txt")
    assert outcome.details["skipped"] == {"it's not there": 1}


def test_without_pytest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytests, "is_installed", lambda name: name != "pytest")
    outcome = pytests.run_pytest([], limit=100, log=tmp_path / "log.txt")
    assert (outcome.status, outcome.reason) == (NOT_RUN, "pytest is not installed")


def test_a_run_that_was_stopped_failed() -> None:
    assert pytests.evaluate(0, True, {"gpu passed": 5}, 100).reason == "stopped after 100 s"


SLOW = (
    TESTS
    + """
def test_three(): assert False

@pytest.mark.parametrize("number", range(100))
def test_slow(number):
    import os, pathlib, signal, time
    WHAT
"""
)
AT_ITS_LIMIT = "os.environ['DRELUOP_TEST_DEADLINE'] = '0'"
# Ignores the request to end, like a kernel that never ends.
HANGS = """signal.signal(signal.SIGINT, signal.SIG_IGN)
    while "failed just now: " not in pathlib.Path(r"LOG").read_text():
        time.sleep(0.01)
    pathlib.Path(r"MARKER").touch()
    time.sleep(3600)"""


@pytest.fixture
def two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytests, "WORKERS", 2)
    # Where pytest would tidy up what others left, which takes its time.
    monkeypatch.setenv("PYTEST_DEBUG_TEMPROOT", str(tmp_path))


@pytest.mark.usefixtures("two_workers")
@pytest.mark.parametrize("parallel", [False, True], ids=["", "parallel"])
def test_a_run_that_reaches_its_limit_ends_with_its_report(tmp_path: Path, parallel: bool) -> None:
    path = tmp_path / "test_some.py"
    path.write_text(SLOW.replace("WHAT", AT_ITS_LIMIT))
    outcome = pytests.run_pytest([str(path)], limit=PATIENCE, log=tmp_path / "log.txt", parallel=parallel)
    not_begun = outcome.details["skipped"]["not begun: the time limit was reached"]
    assert outcome.status == FAILED
    (failed,) = outcome.details["failed"]
    assert failed.endswith("test_some::test_three")
    assert outcome.reason == (
        f"{not_begun} tests were not begun within the limit of {PATIENCE} s; 1 tests failed, the first: {failed}"
    )
    # All are counted once; the failure's text is in the log.
    assert 1 <= outcome.details["passed"] - 1 < 100
    assert outcome.details["passed"] + not_begun == 101
    assert "def test_three(): assert False" in (tmp_path / "log.txt").read_text()


# As tests/conftest.py does.
CONFTEST = """
def pytest_runtest_setup(item):
    if "gpu" in item.name:
        item.user_properties.append(("gpu", "yes"))
"""
FILES = {
    "test_first.py": """
import os
import pytest

@pytest.mark.parametrize("number", range(3))
def test_gpu(number): pass

def test_gpu_fails(): assert False

def test_gpu_lacks_something(): pytest.skip("it is not there")

def test_gpu_ends_all():
    if ENDS:
        os.environ["DRELUOP_TEST_DEADLINE"] = "0"

def test_gpu_late(): pass
""",
    "test_no_gpu.py": "def test_of_the_cpu(): pass\n",
    "test_skipped.py": SKIPPED,
    "test_second.py": "import pytest\n@pytest.fixture\ndef made(): assert False\ndef test_gpu_later(made): pass\n",
}


@pytest.mark.usefixtures("two_workers")
@pytest.mark.parametrize(("ends", "parallel"), [(True, False), (False, True)], ids=["limit", "parallel"])
def test_what_became_of_each_file_with_tests_of_the_gpu(tmp_path: Path, ends: bool, parallel: bool) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text.replace("ENDS", str(ends)))
    outcome = pytests.run_pytest([str(tmp_path)], limit=100, log=tmp_path / "log.txt", parallel=parallel)
    found = outcome.details["by file"]
    first, second = sorted(found)
    # They lie outside of the repository, and how pytest names them depends on where that is.
    assert [Path(name).name for name in (first, second)] == ["test_first.py", "test_second.py"]
    both = {"failed": 1, "skipped": 1}
    assert found == (
        {first: {"passed": 4, **both, "not begun": 1}, second: {"not begun": 1}}
        if ends
        else {first: {"passed": 5, **both}, second: {"failed": 1}}
    )
    assert outcome.details["gpu passed"] == found[first]["passed"]
    assert outcome.details["skipped"].get("it's not there") == 1


@pytest.mark.usefixtures("two_workers")
@pytest.mark.parametrize("parallel", [False, True], ids=["", "parallel"])
def test_a_run_in_which_a_test_hangs_keeps_the_names_of_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: bool
) -> None:
    path = tmp_path / "test_some.py"
    marker = tmp_path / "hangs"
    log = tmp_path / "log.txt"
    path.write_text(SLOW.replace("WHAT", HANGS.replace("MARKER", str(marker)).replace("LOG", str(log))))
    limit_is_reached_when(marker.exists, monkeypatch)
    monkeypatch.setattr(execution, "GRACE", 1)
    outcome = pytests.run_pytest([str(path)], limit=PATIENCE, log=log, parallel=parallel)
    assert outcome.status == FAILED
    (name,) = outcome.details["failed"]
    assert name.endswith("test_some.py::test_three")
    assert outcome.reason == f"stopped after {PATIENCE} s; 1 tests failed, the first: {name}"


Commands = list[tuple[list[str], dict[str, str]]]
# The benchmark of a stage, and its limit where the stage has 100 s.
BENCHMARKS = {
    "bench": ("kernels", "85"),
    "scaling": ("scaling", "60"),
    "batch-norm": ("batch-norm-gpu", "60"),
    "compiled": ("compiled", "85"),
    "models": ("models", "85"),
}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    """What stages would execute."""
    found: Commands = []

    def execute(command: list[str], *, environment: dict[str, str] | None = None, **_: Any) -> Finished:
        found.append((command, environment or {}))
        return Finished(1, "nvcc is missing\n", False)

    monkeypatch.setattr(stages, "execute", execute)
    monkeypatch.setattr(pytests, "execute", execute)
    return found


def test_build_is_for_the_gpu(tmp_path: Path, gpu: Gpu, commands: Commands) -> None:
    outcome = stages.build(stages.Context(gpu, tmp_path, 100))
    ((command, environment),) = commands
    assert command[1:] == ["setup.py", "build_ext", "--inplace"]
    assert environment == {"DRELUOP_BUILD": "cuda", "DRELUOP_CUDA_ARCHS": "90"}
    assert (outcome.status, outcome.reason) == (FAILED, "setup.py ended with exit code 1: nvcc is missing")
    assert outcome.details["archs"] == "90"


def test_a_build_without_its_tools_is_not_run(tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "is_installed", lambda package: package != "pybind11")
    monkeypatch.setattr(stages.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "cmake").touch(mode=0o755)
    outcome = stages.STAGES["build"](stages.Context(gpu, tmp_path, 100))
    assert (outcome.status, outcome.reason) == (NOT_RUN, "needs pybind11, ninja, not installed")


@pytest.mark.parametrize("name", ["smoke", "tests", "graphs", "large"])
def test_stages_of_tests_name_files_that_exist(tmp_path: Path, gpu: Gpu, commands: Commands, name: str) -> None:
    outcome = stages.STAGES[name](stages.Context(gpu, tmp_path, 100))
    assert outcome.status == FAILED
    ((command, environment),) = commands
    assert environment["DRELUOP_REQUIRE_CUDA"] == "1"
    files = [argument for argument in command if argument.startswith("tests/")]
    assert all((ROOT / file).exists() for file in files)
    assert bool(files) == (name != "tests")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_that_fails(tmp_path: Path, gpu: Gpu, commands: Commands, name: str) -> None:
    benchmark, limit = BENCHMARKS[name]
    # What an earlier run left is not taken for this one's.
    (tmp_path / f"{benchmark}.jsonl").write_text("{}")
    outcome = stages.STAGES[name](stages.Context(gpu, tmp_path, 100, quick=True))
    assert (outcome.status, outcome.reason) == (FAILED, "exit code 1: nvcc is missing")
    assert outcome.details == {"rows": 0, "not measured": [], "missing": []}
    out = ["--device", "cuda", "--out", str(tmp_path), "--limit", limit]
    assert commands[0][0][1:] == ["-m", "benchmarks", benchmark, *out, "--quick"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_know_the_options_that_they_get(
    tmp_path: Path, gpu: Gpu, commands: Commands, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    stages.STAGES[name](stages.Context(gpu, tmp_path, 100, quick=True))
    _, _, _, *arguments = commands[0][0]
    with pytest.raises(SystemExit, match="0"):
        benchmarks.main([arguments[0], "--help"])
    options = [argument for argument in arguments if argument.startswith("--")]
    known = capsys.readouterr().out
    assert [option for option in [*options, "--resume"] if option not in known] == []


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_go_on_from_the_files_of_the_gpu(tmp_path: Path, gpu: Gpu, commands: Commands, name: str) -> None:
    file = f"{BENCHMARKS[name][0]}.jsonl"
    former = tmp_path / "results"
    context = stages.Context(gpu, tmp_path, 100, resume=former)
    stages.STAGES[name](context)
    former.mkdir()
    (former / file).write_text("{}")
    stages.STAGES[name](replace(context, resume=None))
    assert not any("--resume" in command for command, _ in commands)
    stages.STAGES[name](context)
    command = commands[-1][0]
    assert command[command.index("--resume") + 1] == str(former)
    assert command[command.index("--out") + 1] == str(tmp_path)


def test_folders_that_are_not_collected_have_no_gpu_tests() -> None:
    of_the_gpu = re.compile(r"mark\.gpu|^def test_\w+\([^)]*\b(?:backend|device: torch\.device)\b", re.MULTILINE)
    files = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)
    }
    found = {name for name in files if of_the_gpu.search((ROOT / name).read_text())}
    assert len(found) > 10, "or the expression is out of date"
    assert not [name for name in found if name.startswith(stages.WITHOUT_GPU_TESTS)]


def test_where_gpu_tests_are_no_conftest_imports_what_may_be_missing() -> None:
    # pytest imports these files before tests/support/missing.py can turn the error into a skip.
    conftests = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("conftest.py")]
    collected = [path for path in conftests if not path.as_posix().startswith(stages.WITHOUT_GPU_TESTS)]
    assert len(collected) > 3
    text = "\n".join((ROOT / path).read_text() for path in collected)
    imported = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))
    assert imported - sys.stdlib_module_names <= {"dreluop", "pytest", "tests", "tools", "torch"}


def test_the_compiled_networks_fit_the_limit_of_their_stage() -> None:
    assert sum(case.seconds for case in CASES["cuda"]) <= stages.STAGES["compiled"].limit - stages.END


@pytest.mark.parametrize(
    ("name", "limit"), [("scaling", "60"), ("batch-norm", "60"), ("compiled", "165"), ("models", "485")]
)
def test_some_benchmarks_leave_time_for_others(
    tmp_path: Path, gpu: Gpu, commands: Commands, name: str, limit: str
) -> None:
    stages.STAGES[name](stages.Context(gpu, tmp_path, 500))
    command = commands[0][0]
    assert command[command.index("--limit") + 1] == limit


@pytest.mark.parametrize(
    ("code", "timed_out", "failures", "status", "reason"),
    [
        (0, False, [], PASSED, None),
        (0, False, [{"implementation": "clamp"}], PASSED, None),
        (0, False, [{"implementation": "dreluop, Triton"}], FAILED, "a case: why"),
        (0, False, [{"implementation": None}], FAILED, "a case: why"),
        (OUT_OF_TIME, False, [], FAILED, "not all cases within 85 s"),
        (-9, True, [], FAILED, "stopped after 100 s"),
    ],
    ids=["passed", "other_failed", "ours_failed", "case_failed", "out_of_time", "killed"],
)
def test_a_benchmark_that_wrote_a_file(
    tmp_path: Path,
    gpu: Gpu,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    timed_out: bool,
    failures: list[dict[str, Any]],
    status: str,
    reason: str | None,
) -> None:
    def execute(*_: Any, **__: Any) -> Finished:
        record = Record([{"id": "run", "device": gpu, "settings": {}}])
        rows = [{"implementation": name} for name in ("x", "y")]
        record.add("a case", [*rows, *({"failure": "why", **one} for one in failures)], ("implementation",))
        record.save(tmp_path / "kernels.jsonl")
        return Finished(code, "", timed_out)

    monkeypatch.setattr(stages, "execute", execute)
    outcome = stages.STAGES["bench"](stages.Context(gpu, tmp_path, 100))
    assert (outcome.status, outcome.reason) == (status, reason)
    assert outcome.details["rows"] == 2 and len(outcome.details["missing"]) > 50
