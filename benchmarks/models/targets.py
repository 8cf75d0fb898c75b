"""The speed to reach inside a compiled model, as data, and how measured rows stand against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from benchmarks.harness import implementations as c
from benchmarks.models.implementations import FUSED, IN_PLACE
from benchmarks.models.steps import COMPILED, PASSES
from benchmarks.models.suite import KEYS, Row
from benchmarks.verdicts import Verdict, verdicts


@dataclass(frozen=True)
class Target:
    """A limit on our time over another implementation's, both compiled; met within the noise of the two.

    Attributes:
        pass_: the pass that is meant.
        against: with whom ours is compared.
        limit: of the ratio, at most.
    """

    pass_: str
    against: str = c.RELU_MINIMUM.name
    limit: float = 1.0

    @property
    def is_floor(self) -> bool:
        """Smaller is better."""
        return True

    def met_by(self, measured: float) -> bool:
        return measured <= self.limit

    def applies_to(self, row: Row) -> bool:
        """Whether a row is one of ours that has to reach it: what ``replace_activations`` makes, fused or not."""
        return row["implementation"] in (FUSED, IN_PLACE) and row["mode"] == COMPILED and row["pass"] == self.pass_


TARGETS = tuple(Target(pass_) for pass_ in PASSES)


def row_of(rows: Sequence[Row], like: Row, implementation: str) -> Row | None:
    """The row of another implementation of the same case."""
    for row in rows:
        if row["implementation"] == implementation and all(row[key] == like[key] for key in KEYS):  # type: ignore[literal-required]
            return row
    return None


@dataclass(frozen=True)
class NoisyVerdict(Verdict):
    """``measured``: our time over the other's; ``noise``: the larger of both distances of quartiles over the median."""

    noise: float = 0.0

    @property
    def met(self) -> bool:
        return bool(self.target.met_by(self.measured - self.noise))


def evaluate(target: Target, rows: Sequence[Row]) -> list[NoisyVerdict]:
    """The verdicts on every row that has to reach the target and can be evaluated, the worst first."""

    def other(row: Row) -> Row | None:
        return row_of(rows, row, target.against)

    def ratio(row: Row) -> float | None:
        found = other(row)
        return None if found is None else row["ms"] / found["ms"]

    def noise(row: Row) -> float:
        return max((one["q3_ms"] - one["q1_ms"]) / one["ms"] for one in (row, other(row) or row))

    found = verdicts(target, rows, ratio)
    return [NoisyVerdict(one.target, one.row, one.measured, noise(cast(Row, one.row))) for one in found]
