"""Each network in a process of its own, which gives back its memory and may crash."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

from benchmarks.surgery.zoo.case import Case
from benchmarks.surgery.zoo.row import Row, check

SECONDS = 900.0


def check_apart(case: Case) -> Row:
    """``check`` in a fork of this process; if it crashes or takes longer than SECONDS, the row says so."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, case))
    process.start()
    theirs.close()
    try:
        if ours.poll(SECONDS):
            row: Row = ours.recv()
        else:
            row = Row(case.name, error=f"took longer than {SECONDS:g} s")
    except EOFError:
        process.join()
        row = Row(case.name, error=f"the process ended with exit code {process.exitcode}")
    process.kill()
    process.join()
    return row


def _send(connection: Connection, case: Case) -> None:
    connection.send(check(case))
