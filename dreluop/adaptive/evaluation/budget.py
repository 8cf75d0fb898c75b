"""How hard a model is attacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dreluop.adaptive.attacks.checks import at_least_one


@dataclass(frozen=True)
class AttackBudget:
    """How hard, and with how many inputs, a model is attacked.

    Attributes:
        batch_size: inputs attacked at once.
        pgd_steps, apgd_steps, square_queries: of these attacks; every adaptive attack has apgd_steps too.
        cw_samples, cw_steps, cw_searches: first inputs, steps per search and searches of CW-L2; without inputs there is
            no attack in L2.
        cw_bounds: L2 distances within which a wrong input of CW-L2 counts. The adaptive attack in L2 has the smallest
            as its radius.
        bounds: radii of a sweep over the bound; none, no sweep.
        auto_attack: run the whole of AutoAttack too.
        seed: of every attack.
    """

    batch_size: int = 250
    pgd_steps: int = 40
    apgd_steps: int = 50
    square_queries: int = 5000
    cw_samples: int = 100
    cw_steps: int = 200
    cw_searches: int = 6
    cw_bounds: tuple[float, ...] = (1.5, 18.0)
    bounds: tuple[float, ...] = ()
    auto_attack: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "pgd_steps", "apgd_steps", "square_queries", "cw_steps", "cw_searches"):
            at_least_one(name, getattr(self, name))
        if self.cw_samples < 0:
            raise ValueError(f"cw_samples: got {self.cw_samples}; expected at least 0")
        for name in ("cw_bounds", "bounds"):
            check_radii(name, getattr(self, name))
        if self.cw_samples and not self.cw_bounds:
            raise ValueError("cw_bounds: got none; expected at least one, or no cw_samples")


def check_radii(name: str, radii: Sequence[float]) -> None:
    """Check that the radii are finite, and differ in the six digits by which results are kept.

    Raises:
        ValueError: not so.
    """
    by_text: dict[str, float] = {}
    for radius in radii:
        if not 0 <= radius < float("inf"):
            raise ValueError(f"{name}: got {radius}; expected finite numbers >= 0")
        text = f"{radius:g}"
        if text in by_text:
            both = f"{by_text[text]} and {radius}"
            raise ValueError(f"{name}: got {both}; expected values that differ in their first six digits")
        by_text[text] = radius
