"""How hard a model is attacked."""

from __future__ import annotations

from dataclasses import dataclass

from dreluop.adaptive.attacks.checks import at_least_one

# Of the attacks: raise it when they change, so that no record of older ones is taken for a new one.
REVISION = 2


@dataclass(frozen=True)
class AttackSettings:
    """How hard, and with how many inputs, a model is attacked. eps and the L2 bound of 18 are the paper's for MNIST.

    Attributes:
        eps: radius of the L-infinity ball, in units of x.
        samples: first test inputs that are attacked.
        batch_size: inputs attacked at once.
        pgd_steps, apgd_steps, square_queries: of these attacks; every adaptive attack has apgd_steps too.
        cw_samples, cw_steps, cw_searches: first inputs, at most samples, steps per search and searches of CW-L2; no
            inputs, no attack in L2.
        cw_bounds: L2 distances within which a wrong input of CW-L2 counts; the paper's is 18. The adaptive attacks in
            L2 have the smallest as their radius.
        bounds: radii of the sweep over bounds (Figures 25 to 27); none, no sweep.
        auto_attack: the whole of AutoAttack as a column of its own.
        seed: of every attack.
    """

    eps: float = 0.1
    samples: int = 500
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
        for name in ("samples", "batch_size", "pgd_steps", "apgd_steps", "square_queries", "cw_steps", "cw_searches"):
            at_least_one(name, getattr(self, name))
        for name, values in (("eps", (self.eps,)), ("cw_bounds", self.cw_bounds), ("bounds", self.bounds)):
            if not all(0 <= value < float("inf") for value in values):
                raise ValueError(f"{name}: got {getattr(self, name)}; expected finite numbers >= 0")
            _check_names(name, values)
        if self.cw_samples and not self.cw_bounds:
            raise ValueError("cw_bounds: got none; expected at least one, or no cw_samples")
        if self.cw_samples < 0:
            raise ValueError(f"cw_samples: got {self.cw_samples}; expected at least 0")


def _check_names(name: str, values: tuple[float, ...]) -> None:
    """Results are kept by the value in six digits."""
    by_text: dict[str, float] = {}
    for value in values:
        other = by_text.setdefault(f"{value:g}", value)
        if other != value:
            raise ValueError(f"{name}: got {other} and {value}; expected values that differ in their first six digits")
