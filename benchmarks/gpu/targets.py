"""The speeds to reach on an H100 or H200, as data, and which measured rows have to reach them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu.suite import Row, is_plain_and_large, is_small
from benchmarks.harness import implementations as c
from benchmarks.kernels.suite import BACKWARD, BOTH, FORWARD
from benchmarks.verdicts import Verdict, verdicts

LAUNCHES = "kernels"
HALF_AND_SINGLE = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Target:
    """A limit for an implementation of ours.

    Attributes:
        pass_: the pass that is meant.
        against: ``c.COPY``: the fraction of the copy's bandwidth; an implementation: its time over ours; ``LAUNCHES``.
        limit: at least this; of launches, at most.
        dtypes: to which it applies; None for all.
        small: whether it is meant for tensors of at most 1 MB rather than for those of 64 MB and more.
        implementation: which of ours.
    """

    pass_: str
    against: str
    limit: float
    dtypes: tuple[str, ...] | None = None
    small: bool = False
    implementation: str = c.OURS.name

    @property
    def is_floor(self) -> bool:
        """Whether smaller is better."""
        return self.against == LAUNCHES

    def applies_to(self, row: Row) -> bool:
        sized = is_small(row) if self.small else is_plain_and_large(row)
        of_dtype = self.dtypes is None or row["dtype"] in self.dtypes
        return row["implementation"] == self.implementation and row["pass"] == self.pass_ and sized and of_dtype

    def met_by(self, measured: float) -> bool:
        return measured <= self.limit if self.is_floor else measured >= self.limit

    def measure(self, row: Row, rows: Sequence[Row]) -> float | None:
        """What is limited, of this row; None if what it is compared with was not measured."""
        if self.against == LAUNCHES:
            return row["kernels"]
        if self.against == c.COPY:
            return row["fraction_of_copy"]
        other = row_of(rows, row, self.against)
        return None if other is None else other["ms"] / row["ms"]


TARGETS = (
    Target(FORWARD, c.COPY, 0.95, HALF_AND_SINGLE),
    Target(BACKWARD, c.COPY, 0.92, HALF_AND_SINGLE),
    Target(BACKWARD, LAUNCHES, 1),
    Target(BOTH, c.RELU_MINIMUM.name, 4),
    Target(BOTH, c.CLAMP.name, 4),
    Target(BOTH, c.COMPILED.name, 1.15),
    Target(BOTH, c.COMPILED.name, 1.3, implementation=c.OURS_MASK.name),
    Target(FORWARD, LAUNCHES, 1, small=True),
    Target(BACKWARD, LAUNCHES, 1, small=True),
    Target(BOTH, c.RELU_MINIMUM.name, 2, small=True),
)


def row_of(rows: Sequence[Row], like: Row, implementation: str) -> Row | None:
    """The row of another implementation on the same input and pass."""
    for row in rows:
        if row["implementation"] == implementation and all(row[key] == like[key] for key in ("case", "dtype", "pass")):
            return row
    return None


def evaluate(target: Target, rows: Sequence[Row]) -> list[Verdict]:
    """The verdicts on every row that has to reach the target and can be evaluated, the worst first."""
    return verdicts(target, rows, lambda row: target.measure(row, rows))
