"""The rows of a scaling file as lines of a picture, and where the fixed overhead ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.kernels.suite import COLD_MODE
from benchmarks.scaling.cases import CAPS, EAGER_MODE, SIZE

OVERHEAD_ENDS = 2.0  # where a call takes this many times what the smallest takes


@dataclass(frozen=True)
class Style:
    """A way of running: on so many threads, or as CUDA graphs, or launched by the host."""

    name: str
    threads: int | None
    eager: bool
    line: str

    def has(self, row: Mapping[str, Any]) -> bool:
        return bool(row["threads"] == self.threads and (row["mode"] == EAGER_MODE) == self.eager)


def styles(document: Mapping[str, Any]) -> tuple[Style, ...]:
    """The first is the main one, which both axes have."""
    if document["device"].get("type") == "cuda":
        return Style("CUDA graphs", None, False, "-"), Style("launched by the host", None, True, ":")
    return Style("2 threads", 2, False, "-"), Style("1 thread", 1, False, ":")


def line(
    document: Mapping[str, Any], axis: str, style: Style, implementation: str, pass_: str, dtype: str
) -> dict[int, Mapping[str, Any]]:
    """By bytes of x or by caps: the cold row where there is one, else the hot."""
    key = {SIZE: "x_bytes", CAPS: "caps"}[axis]
    found: dict[int, Mapping[str, Any]] = {}
    for row in document["rows"]:
        if (row["axis"], row["implementation"], row["pass"], row["dtype"]) != (axis, implementation, pass_, dtype):
            continue
        if style.has(row) and (row[key] not in found or row["mode"] == COLD_MODE):
            found[row[key]] = row
    return dict(sorted(found.items()))


def overhead_ends(found: Mapping[int, Mapping[str, Any]]) -> int | None:
    """The first size at which a call takes ``OVERHEAD_ENDS`` times as long as at the smallest; None if none does."""
    times: Sequence[tuple[int, float]] = [(size, row["ms"]) for size, row in found.items()]
    return next((size for size, ms in times if ms >= OVERHEAD_ENDS * times[0][1]), None)
