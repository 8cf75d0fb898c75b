"""The workers of a study end with it, however it ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from studies.drelu_paper import command, engines
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[3]
# A job that never ends: the worker says that it runs, and holds the pipe until its process has ended.
PARENT = """
import os, sys, time
from functools import partial
from studies.drelu_paper import command
from studies.drelu_paper import engines
from studies.drelu_paper.jobs import Job

def work(path, job):
    pipe = os.open(path, os.O_WRONLY)
    os.write(pipe, b".")
    time.sleep(3600)

if __name__ == "__main__":
    engines.by_processes([Job("a", None)], partial(work, sys.argv[1]), 1)
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_workers_end_with_their_parent(tmp_path: Path):
    """Also where it is killed outright, and can do nothing about them."""
    script, pipe = tmp_path / "parent.py", tmp_path / "pipe"
    script.write_text(PARENT)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(
        [sys.executable, script, pipe], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        assert select.select([reader], [], [], PATIENCE)[0], "the worker does not begin"
        assert os.read(reader, 1) == b"."
        parent.kill()
        assert parent.wait(PATIENCE) == -signal.SIGKILL
        # The end of the file: no process holds the other end.
        assert select.select([reader], [], [], PATIENCE)[0], "the worker goes on"
        assert os.read(reader, 1) == b""
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
        os.close(reader)


def test_sigterm_is_an_error_within_a_study_and_what_it_was_after():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(engines.Terminated), engines._stopped_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_only_the_main_thread_takes_sigterm():
    handlers = []

    def elsewhere() -> None:
        with engines._stopped_by_sigterm():
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert handlers == [before]


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [(KeyboardInterrupt, command.INTERRUPTED, "interrupted"), (engines.Terminated, command.TERMINATED, "terminated")],
)
def test_the_command_says_how_it_ended(
    error: type[BaseException], code: int, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def ends(*_: object) -> None:
        raise error

    monkeypatch.setattr(command, "_by_engine", ends)
    arguments = ["run", "smoke", "--results", str(tmp_path / "records"), "--work", str(tmp_path / "work")]
    assert command.main(arguments) == code
    assert capsys.readouterr().err == f"{word}; the same command goes on from the last epochs and attacks\n"
