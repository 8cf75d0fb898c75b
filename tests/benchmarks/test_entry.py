"""How every ``python -m benchmarks...`` ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")

ROOT = Path(__file__).parents[2]
ENTRIES = [
    path
    for path in (ROOT / "benchmarks").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text() and path.name != "bench_profile.py"  # what ncu looks at
]


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_entry_point_ends_alike(path: Path) -> None:
    assert re.search(r'if __name__ == "__main__":\n    exit_with\(main\)\n$', path.read_text())


def ended(program: str, read: bool) -> subprocess.CompletedProcess[str]:
    """A program whose output is read, or by nobody."""
    reader, writer = os.pipe()
    if not read:
        os.close(reader)
    with open(writer, "w") as output:
        done = subprocess.run(
            [sys.executable, "-c", f"from benchmarks.harness.entry import exit_with\n{program}\nexit_with(main)"],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    if read:
        os.close(reader)
    return done


PRINTS = "def main():\n    print('a line')\n    return 3"
EXITS = "def main():\n    print('usage')\n    raise SystemExit(2)"
FLUSHES = "def main():\n    while True: print('a line', flush=True)"
OF_ANOTHER_PIPE = "def main():\n    raise BrokenPipeError('of a worker')"


@pytest.mark.parametrize("program", [PRINTS, EXITS, FLUSHES], ids=["prints", "exits", "flushes"])
def test_a_reader_that_goes_ends_it_quietly(program: str) -> None:
    done = ended(program, read=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(("program", "code"), [(PRINTS, 3), (EXITS, 2)], ids=["prints", "exits"])
def test_the_exit_code_is_that_of_main(program: str, code: int) -> None:
    done = ended(program, read=True)
    assert (done.returncode, done.stderr) == (code, "")


def test_the_broken_pipe_of_a_worker_is_an_error() -> None:
    done = ended(OF_ANOTHER_PIPE, read=True)
    assert done.returncode == 1
    assert "BrokenPipeError: of a worker" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("stats", "--paper-table", "6"),
        pytest.param(("table", "digits"), marks=pytest.mark.full),
        pytest.param(("stats", "digits"), marks=pytest.mark.full),
    ],
)
def test_the_experiments_end_quietly_too(arguments: tuple[str, ...]) -> None:
    command = f"import sys\nfrom studies.drelu_paper.command import main as of\ndef main(): return of({arguments!r})"
    done = ended(command, read=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "from benchmarks.harness.entry import exit_with\nexit_with(lambda: print('a line') or 3)"],
        ["-c", "from dreluop import __main__ as m\nm.main = lambda: print('a line') or 3\nraise SystemExit(m._run())"],
    ],
    ids=["benchmarks", "dreluop"],
)
def test_a_closed_output_is_no_error(command: list[str]) -> None:
    closed = f"import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, *{command!r}])"
    done = subprocess.run([sys.executable, "-c", closed], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")
