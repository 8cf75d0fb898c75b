"""The speed to reach inside a compiled model, as data, and how measured rows stand against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.kernels import contenders as c
from benchmarks.models.contenders import FUSED, IN_PLACE
from benchmarks.models.steps import COMPILED, PASSES
from benchmarks.models.suite import KEYS, Row


@dataclass(frozen=True)
class Target:
    """A limit on our time over another contender's, both compiled; met within the noise of the two.

    Attributes:
        pass_: the pass that is meant.
        against: with whom ours is compared.
        limit: of the ratio, at most.
    """

    pass_: str
    against: str = c.RELU_MINIMUM.name
    limit: float = 1.0

    def applies_to(self, row: Row) -> bool:
        """Whether a row is one of ours that has to reach it: what ``replace_activations`` makes, fused or not."""
        return row["contender"] in (FUSED, IN_PLACE) and row["mode"] == COMPILED and row["pass"] == self.pass_


TARGETS = tuple(Target(pass_) for pass_ in PASSES)


def row_of(rows: Sequence[Row], like: Row, contender: str) -> Row | None:
    """The row of another contender of the same case."""
    for row in rows:
        if row["contender"] == contender and all(row[key] == like[key] for key in KEYS):  # type: ignore[literal-required]
            return row
    return None


@dataclass(frozen=True)
class Verdict:
    """``measured``: our time over the other's; ``noise``: the larger of both distances of quartiles over the median."""

    target: Target
    row: Row
    measured: float
    noise: float

    @property
    def met(self) -> bool:
        return self.measured <= self.target.limit + self.noise


def judge(target: Target, rows: Sequence[Row]) -> list[Verdict]:
    """The verdicts on every row that has to reach the target and can be judged, the worst first."""
    found = []
    for row in rows:
        other = row_of(rows, row, target.against) if target.applies_to(row) else None
        if other is not None:
            noise = max((one["q3_ms"] - one["q1_ms"]) / one["ms"] for one in (row, other))
            found.append(Verdict(target, row, row["ms"] / other["ms"], noise))
    return sorted(found, key=lambda verdict: -verdict.measured)
