"""How measured rows stand against targets, and the table of it; what the targets are, each suite says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from benchmarks.harness.table import MISSING, Table


class Target(Protocol):
    """What is asked of a measured value."""

    @property
    def is_floor(self) -> bool:
        """Whether smaller is better."""

    def applies_to(self, row: Any) -> bool:
        """Whether a row has to reach it."""

    def met_by(self, measured: float) -> bool: ...


SomeTarget = TypeVar("SomeTarget", bound=Target)


@dataclass(frozen=True)
class Verdict:
    """How one row stands against one target; ``measured`` is what that limits."""

    target: Any
    row: Mapping[str, Any]
    measured: float

    @property
    def met(self) -> bool:
        return bool(self.target.met_by(self.measured))


def verdicts(target: Target, rows: Sequence[Any], measure: Callable[[Any], float | None]) -> list[Verdict]:
    """The verdicts on every row that has to reach the target and can be measured, the worst first."""
    found = []
    for row in rows:
        if target.applies_to(row):
            measured = measure(row)
            if measured is not None:
                found.append(Verdict(target, row, measured))
    return sorted(found, key=lambda verdict: verdict.measured, reverse=target.is_floor)


def table_of_targets(
    header: tuple[str, str, str],
    targets: Sequence[SomeTarget],
    evaluate: Callable[[SomeTarget], Sequence[Verdict]],
    subject: Callable[[SomeTarget], tuple[str, str, str]],
    measured: Callable[[Verdict], str],
    note: str = "",
) -> Table:
    """Each target beside what was measured, at worst and at best.

    Args:
        header: of the columns that say what the target is.
        targets: one row each.
        evaluate: the verdicts on a target, the worst first.
        subject: what the target is, in three cells.
        measured: a verdict's value as text.
        note: added to every outcome.
    """
    rows: list[tuple[str, ...]] = []
    for target in targets:
        found = evaluate(target)
        if not found:
            rows.append((*subject(target), MISSING, MISSING, "not measured"))
            continue
        missed = sum(not verdict.met for verdict in found)
        met = f"**missed** in {missed} of {len(found)}" if missed else f"yes, {len(found)} of {len(found)}"
        rows.append((*subject(target), measured(found[0]), measured(found[-1]), met + note))
    return Table("Targets", (*header, "worst", "best", "met"), rows)
