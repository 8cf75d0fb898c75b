"""One thing for every implementation: as long as there is time, and whatever fails is named."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypedDict, TypeVar

from benchmarks.running import NO_TIME

T = TypeVar("T")


class Failure(TypedDict):
    """An implementation of a case, or (None) a whole case, that was not measured."""

    case: str
    implementation: str | None
    reason: str


def attempt(
    names: Sequence[str], label: str, do: Callable[[str], T], release: Callable[[], None], until: float | None
) -> tuple[dict[str, T], list[Failure]]:
    """Do something for every implementation of a case.

    Args:
        label: the case's.
        release: called after a failure.
        until: when, by ``time.monotonic``, to end; what may take as long as the slowest before is not begun then.

    Returns:
        What came of it by name, and the failures.
    """
    done: dict[str, T] = {}
    failures: list[Failure] = []
    longest = 0.0
    for name in names:
        started = time.monotonic()
        if until is not None and started + longest > until:
            failures.append({"case": label, "implementation": name, "reason": NO_TIME})
            continue
        try:
            done[name] = do(name)
        except Exception as error:
            failures.append({"case": label, "implementation": name, "reason": reason_of(error)})
        if name not in done:
            # What the error's frames held is free only now.
            release()
        longest = max(longest, time.monotonic() - started)
    return done, failures


def reason_of(error: BaseException) -> str:
    """The first words of an error; the compiler's tell the backend in the first line and the cause in the second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"
