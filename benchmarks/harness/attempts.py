"""One thing for every implementation, as long as there is time; whatever fails becomes a row that says why."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from benchmarks.harness.records import NO_TIME

T = TypeVar("T")


def attempt(
    names: Sequence[str], do: Callable[[str], T], release: Callable[[], None], until: float | None = None
) -> tuple[dict[str, T], list[dict[str, Any]]]:
    """Do something for every implementation of a case.

    Args:
        release: called after a failure.
        until: when, by ``time.monotonic``, to end; what may take as long as the slowest before is not begun then.

    Returns:
        What came of it by name, and the failures.
    """
    done: dict[str, T] = {}
    failures: list[dict[str, Any]] = []
    longest = 0.0
    for name in names:
        started = time.monotonic()
        if until is not None and started + longest > until:
            failures.append({"implementation": name, "failure": NO_TIME})
            continue
        try:
            done[name] = do(name)
        except Exception as error:
            failures.append(failure(error, name))
        if name not in done:
            # What the error's frames held is free only now.
            release()
        longest = max(longest, time.monotonic() - started)
    return done, failures


def failure(error: BaseException, implementation: str | None = None) -> dict[str, Any]:
    """The row of what was not measured: an implementation, or a whole case (None).

    The compiler's errors tell the backend in the first line and the cause in the second.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return {"implementation": implementation, "failure": f"{type(error).__name__}: {' '.join(lines[:2])}"}
