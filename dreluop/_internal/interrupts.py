"""Contexts that an interrupt (Ctrl-C) cannot leave half entered or half left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def left_for_certain(enter: Callable[[], None], leave: Callable[[], None]) -> Iterator[None]:
    """Call ``enter``, and after the block ``leave``, which may be called twice and before ``enter`` has ended."""
    try:
        try:
            enter()
            yield
        finally:
            leave()
    finally:
        # An interrupt may have cut off the first call.
        leave()
