"""The speeds to reach on a CPU with 2 threads, as data, and how measured rows stand against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.harness import implementations as c
from benchmarks.kernels.suite import BACKWARD, BOTH, FORWARD, IN_PLACE, LARGE, SMALL, Row
from benchmarks.verdicts import Verdict, verdicts

THREADS = 2


@dataclass(frozen=True)
class Target:
    """A limit on our time relative to another's.

    Attributes:
        pass_: the pass of ``suite`` that is meant.
        against: whose time ours is compared with: a floor or an implementation.
        limit: of our time over a floor's (at most), or of an implementation's time over ours (at least).
        dtypes: to which it applies; None for all.
        small: whether it is meant for the small case rather than for x of 64 MiB and more.
    """

    pass_: str
    against: str
    limit: float
    dtypes: tuple[str, ...] | None = None
    small: bool = False

    @property
    def is_floor(self) -> bool:
        return self.against in (c.CLONE, c.COPY)

    def applies_to(self, row: Row) -> bool:
        """Whether a row is one of ours that has to reach this target."""
        sized = tuple(row["shape"]) == SMALL if self.small else row["x_bytes"] >= LARGE
        of_dtype = self.dtypes is None or row["dtype"] in self.dtypes
        return row["implementation"] == c.OURS.name and row["pass"] == self.pass_ and sized and of_dtype

    def met_by(self, measured: float) -> bool:
        return measured <= self.limit if self.is_floor else measured >= self.limit


TARGETS = (
    Target(FORWARD, c.CLONE, 1.05),
    Target(IN_PLACE, c.COPY, 1.15),
    Target(BACKWARD, c.CLONE, 1.25),
    Target(BOTH, c.RELU_MINIMUM.name, 5, ("float32",)),
    Target(BOTH, c.RELU_MINIMUM.name, 8, ("bfloat16",)),
    Target(BOTH, c.COMPILED.name, 4),
    Target(BOTH, c.RELU_MINIMUM.name, 5, small=True),
)


def ratio_against(row: Row, against: str, rows: Sequence[Row]) -> float | None:
    """Our time over a floor's, or an implementation's time over ours; None if the other was not measured here."""
    if against == row["floor"]:
        return row["ratio_to_floor"]
    for other in rows:
        if other["implementation"] == against and all(other[key] == row[key] for key in ("case", "dtype", "pass")):
            return other["ms"] / row["ms"]
    return None


def evaluate(target: Target, rows: Sequence[Row]) -> list[Verdict]:
    """The verdicts on every row that has to reach the target and can be evaluated, the worst first."""
    return verdicts(target, rows, lambda row: ratio_against(row, target.against, rows))
