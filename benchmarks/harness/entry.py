"""How every ``python -m benchmarks...`` ends."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


def exit_with(main: Callable[[], int | None]) -> NoReturn:
    """Exit with what ``main`` returns; quietly where the reader of the output has gone (``| head -1``)."""
    try:
        try:
            code = main()
        finally:
            if sys.stdout is not None:  # None where it was closed before Python began (`>&-`).
                sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        # Python flushes once more as it ends, to where that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def _reader_is_gone() -> bool:
    """Whether it is the output that broke, and not a pipe to another process."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
