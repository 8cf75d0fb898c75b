"""The attacks that make the columns of a table: the paper's, and those that know of the caps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from dreluop.adaptive import measure_std, reached_caps, smooth_forward
from dreluop.adaptive.attacks import fgsm, frozen, pgd
from dreluop.adaptive.attacks.auto import apgd_ce, apgd_dlr, apgd_targeted, auto_attack, square
from dreluop.adaptive.attacks.margin import Std, margin, margin_gradient
from dreluop.adaptive.attacks.through_caps import (
    transferred,
    uncapped,
    worst_of_soft,
    worst_of_straight_through,
)
from dreluop.adaptive.evaluation.budget import AttackSettings
from dreluop.adaptive.evaluation.positions import ByPosition, std_in_order
from dreluop.modules import DReLU, SReLU

# (x, y, eps, seed) -> adversarial x
Attack = Callable[[Tensor, Tensor, float, int], Tensor]

PAPER = ("fgsm", "pgd", "apgd_ce", "apgd_dlr", "square")
ADAPTIVE = ("straight_through", "soft", "margin", "uncapped", "apgd_targeted", "transfer")


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


def with_widths(model: nn.Module, measured_on: Tensor) -> tuple[nn.Module, Std | None]:
    """What to attack, and what reaches each cap, for the widths of the surrogates.

    Caps are found by running the model: modules, and functional calls. Where a forward makes some anew, the model is
    wrapped, so that each of its calls has the width of its own layer.

    Returns:
        The model, or the model in a ``ByPosition``; and ``std`` for ``smooth_forward``, None if the model calls no
        capped activation.
    """
    model.eval()
    with torch.no_grad():
        caps, again = reached_caps(model, measured_on[:2]), reached_caps(model, measured_on[:2])
    if not caps:
        return model, None
    if all(cap is other for cap, other in zip(caps, again, strict=True)):
        return model, measure_std(model, measured_on)
    same = {cap for cap, other in zip(caps, again, strict=True) if cap is other}
    named = {cap: std for cap, std in measure_std(model, measured_on).items() if cap in same}
    # The wrapper puts the measured widths in place of this one.
    return ByPosition(model, named, std_in_order(model, measured_on)), 1.0


def adaptive_attacks(
    model: nn.Module, baseline: nn.Module | None, settings: AttackSettings, std: Std | None
) -> dict[str, Attack]:
    """What an attacker who knows the model tries besides.

    Args:
        model: with caps it is attacked through them (straight-through, soft, smooth) and, where they are modules,
            without them; without caps by targeted APGD and margins on its exact gradient.
        baseline: a ReLU network trained by itself, whose adversarial inputs are tried on the model; None: not tried.
        settings: their steps.
        std: from ``with_widths``.
    """
    steps = settings.apgd_steps
    attacks: dict[str, Attack] = {}
    if std is None:
        attacks["apgd_targeted"] = lambda x, y, eps, seed: apgd_targeted(model, x, y, eps, steps, seed)
    else:
        attacks["straight_through"] = lambda x, y, eps, seed: worst_of_straight_through(model, x, y, eps, steps, seed)
        attacks["soft"] = lambda x, y, eps, seed: worst_of_soft(model, x, y, eps, steps, seed, std)
    attacks["margin"] = lambda x, y, eps, seed: margin(model, x, y, eps, steps, seed, std=std)
    if any(isinstance(module, DReLU | SReLU) for module in model.modules()):
        attacks["uncapped"] = lambda x, y, eps, seed: uncapped(model, x, y, eps, steps, seed)
    if baseline is not None:
        attacks["transfer"] = lambda x, y, eps, seed: transferred(baseline, model, x, y, eps, steps, seed)
    return attacks


def l2_attack(model: nn.Module, settings: AttackSettings, std: Std | None) -> Attack:
    """The adaptive attack in L2, beside CW-L2."""
    return lambda x, y, eps, seed: margin(model, x, y, eps, settings.apgd_steps, seed, std=std, norm="L2")


def blind_share(model: nn.Module, x: Tensor, y: Tensor, std: Std | None) -> float:
    """Share of the inputs whose margin has an exactly zero gradient for the adaptive attacks too.

    Gradient attacks of every kind leave these inputs where they are: something hides the gradient that no surrogate
    reaches, such as a clamp in plain torch.
    """
    with frozen(model), nullcontext() if std is None else smooth_forward(std=std):
        gradient = margin_gradient(model, x, y)
    return float((gradient.flatten(1) == 0).all(1).float().mean())
