"""The workers of a study end with it, however it ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from studies.drelu_paper import command
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[3]
# A job that never ends: the worker says that it runs, and holds the pipe until its process has ended.
PARENT = """
import os, sys, time
from functools import partial
from studies.drelu_paper import engines
from studies.drelu_paper.jobs import Job

def work(path, job):
    pipe = os.open(path, os.O_WRONLY)
    os.write(pipe, b".")
    time.sleep(3600)

if __name__ == "__main__":
    engines.processes([Job("a", None)], partial(work, sys.argv[1]), 2)
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


def test_the_command_says_that_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def ends(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_by_engine", ends)
    arguments = ["run", "smoke", "--results", str(tmp_path / "records"), "--work", str(tmp_path / "work")]
    assert command.main(arguments) == command.INTERRUPTED
    assert capsys.readouterr().err == "interrupted; the same command goes on from the last epochs and attacks\n"
