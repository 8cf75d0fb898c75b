"""The attacks that make the columns of a table: the paper's, and those that know of the caps."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.robustness.attacks import fgsm, pgd
from benchmarks.robustness.attacks.adaptive import (
    transferred,
    uncapped,
    worst_of_soft,
    worst_of_straight_through,
)
from benchmarks.robustness.attacks.auto import apgd_ce, apgd_dlr, apgd_targeted, auto_attack, square
from benchmarks.robustness.evaluation.settings import AttackSettings
from benchmarks.robustness.training import caps_of
from dreluop.adaptive import measure_std

# (x, y, eps, seed) -> adversarial x
Attack = Callable[[Tensor, Tensor, float, int], Tensor]

PAPER = ("fgsm", "pgd", "apgd_ce", "apgd_dlr", "square")
ADAPTIVE = ("straight_through", "soft", "uncapped", "apgd_targeted", "transfer")


def paper_attacks(model: nn.Module, settings: AttackSettings) -> dict[str, Attack]:
    """The paper's attacks in the L-infinity ball, by the exact gradient or by queries."""
    s = settings
    attacks: dict[str, Attack] = {
        "fgsm": lambda x, y, eps, seed: fgsm(model, x, y, eps),
        "pgd": lambda x, y, eps, seed: pgd(model, x, y, eps, s.pgd_steps, seed=seed),
        "apgd_ce": lambda x, y, eps, seed: apgd_ce(model, x, y, eps, s.apgd_steps, seed),
        "apgd_dlr": lambda x, y, eps, seed: apgd_dlr(model, x, y, eps, s.apgd_steps, seed),
        "square": lambda x, y, eps, seed: square(model, x, y, eps, s.square_queries, seed),
    }
    if s.auto_attack:
        attacks["auto_attack"] = lambda x, y, eps, seed: auto_attack(model, x, y, eps, seed, s.batch_size)
    return attacks


def adaptive_attacks(
    model: nn.Module, twin: nn.Module | None, settings: AttackSettings, measured_on: Tensor
) -> dict[str, Attack]:
    """What an attacker who knows the model tries besides.

    Args:
        model: with caps it is attacked through them (straight-through and soft) and without them; without caps by
            targeted APGD on its exact gradient, which is the strongest there.
        twin: a ReLU network trained by itself, whose adversarial inputs are tried on the model; None: not tried.
        settings: their steps.
        measured_on: inputs for the widths of the soft form.
    """
    steps = settings.apgd_steps
    attacks: dict[str, Attack] = {}
    if caps_of(model):
        std = measure_std(model.eval(), measured_on)
        attacks["straight_through"] = lambda x, y, eps, seed: worst_of_straight_through(model, x, y, eps, steps, seed)
        attacks["soft"] = lambda x, y, eps, seed: worst_of_soft(model, x, y, eps, steps, seed, std)
        attacks["uncapped"] = lambda x, y, eps, seed: uncapped(model, x, y, eps, steps, seed)
    else:
        attacks["apgd_targeted"] = lambda x, y, eps, seed: apgd_targeted(model, x, y, eps, steps, seed)
    if twin is not None:
        attacks["transfer"] = lambda x, y, eps, seed: transferred(twin, model, x, y, eps, steps, seed)
    return attacks
