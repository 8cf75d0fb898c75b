"""The attacks that make the columns of a table: the standard ones, and those that know of the caps."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dreluop.adaptive.attacks.checks import frozen
from dreluop.adaptive.attacks.gradient import fgsm, pgd
from dreluop.adaptive.attacks.margins import Std, margin, margin_gradient
from dreluop.adaptive.evaluation.budget import AttackBudget
from dreluop.adaptive.evaluation.caps import has_caps
from dreluop.adaptive.evaluation.positions import ByPosition, std_in_order
from dreluop.adaptive.surrogates import measure_std, reached_caps, smooth_forward

# (x, y, eps, seed) -> adversarial x
Attack = Callable[[Tensor, Tensor, float, int], Tensor]

STANDARD = ("fgsm", "pgd", "apgd_ce", "apgd_dlr", "square")
AUTO_ATTACK, CW = "auto_attack", "cw_l2"
ADAPTIVE = ("straight_through", "soft", "apgd_targeted", "margin", "uncapped", "transfer")
NAMES = (*STANDARD, AUTO_ATTACK, *ADAPTIVE, CW)

_TORCH_ONLY = ("fgsm", "pgd", "margin")
_IMAGES_ONLY = ("square", AUTO_ATTACK)
_LEAST_CLASSES = {
    "apgd_dlr": 3, "apgd_targeted": 4, "straight_through": 4, "soft": 4, "uncapped": 4, "transfer": 4, AUTO_ATTACK: 10,
}  # fmt: skip


def obstacle(name: str, x: Tensor, classes: int) -> Exception | None:
    """Why an attack cannot run on these inputs here; None where it can."""
    package = "foolbox" if name == CW else "pyautoattack"
    if name not in _TORCH_ONLY and importlib.util.find_spec(package) is None:
        return ModuleNotFoundError(
            f"{name} needs {package}, which is not installed: pip install 'dreluop[robustness]'", name=package
        )
    if classes < _LEAST_CLASSES.get(name, 2):
        return ValueError(f"model: got {classes} classes; {name} needs at least {_LEAST_CLASSES.get(name, 2)}")
    if name in _IMAGES_ONLY and x.ndim != 4:
        return ValueError(f"x: got shape {tuple(x.shape)}; {name} needs images, (N, C, H, W)")
    return None


def with_widths(model: nn.Module, measured_on: Tensor) -> tuple[nn.Module, Std | None]:
    """What to attack, and the standard deviation before each cap, for the widths of the surrogates.

    Caps are found by running the model: modules, and functional calls. Where a forward makes some anew, the model is
    wrapped, so that each of its calls has the width of its own layer.

    Returns:
        The model, or the model in a ``ByPosition``; and ``std`` for ``smooth_forward``, None if the model calls no
        capped activation.
    """
    with frozen(model), torch.no_grad():
        caps, again = reached_caps(model, measured_on[:2]), reached_caps(model, measured_on[:2])
        if not caps:
            return model, None
        std = measure_std(model, measured_on)
        if all(cap is other for cap, other in zip(caps, again, strict=True)):
            return model, std
        same = {cap for cap, other in zip(caps, again, strict=True) if cap is other}
        named = {cap: value for cap, value in std.items() if cap in same}
        # The wrapper puts the measured widths in place of 1.0.
        return ByPosition(model, named, std_in_order(model, measured_on)), 1.0


def standard_attacks(model: nn.Module, budget: AttackBudget) -> dict[str, Attack]:
    """The usual attacks in the L-infinity ball, by the exact gradient or by queries."""
    steps = budget.apgd_steps
    attacks: dict[str, Attack] = {
        "fgsm": lambda x, y, eps, seed: fgsm(model, x, y, eps),
        "pgd": lambda x, y, eps, seed: pgd(model, x, y, eps, budget.pgd_steps, seed=seed),
        "apgd_ce": lambda x, y, eps, seed: _auto().apgd_ce(model, x, y, eps, steps, seed),
        "apgd_dlr": lambda x, y, eps, seed: _auto().apgd_dlr(model, x, y, eps, steps, seed),
        "square": lambda x, y, eps, seed: _auto().square(model, x, y, eps, budget.square_queries, seed),
    }
    if budget.auto_attack:
        attacks[AUTO_ATTACK] = lambda x, y, eps, seed: _auto().auto_attack(model, x, y, eps, seed, budget.batch_size)
    return attacks


def adaptive_attacks(
    model: nn.Module, baseline: nn.Module | None, budget: AttackBudget, std: Std | None
) -> dict[str, Attack]:
    """What an attacker who knows the model tries besides.

    Args:
        model: with caps it is attacked through them (straight-through, soft, smooth) and, where they are modules,
            without them; without caps by targeted APGD and margins on its exact gradient.
        baseline: a network trained separately, whose adversarial inputs are tried on the model; None: not tried.
        budget: their steps.
        std: from ``with_widths``.
    """
    steps = budget.apgd_steps
    attacks: dict[str, Attack] = {}
    if std is None:
        attacks["apgd_targeted"] = lambda x, y, eps, seed: _auto().apgd_targeted(model, x, y, eps, steps, seed)
    else:
        attacks["straight_through"] = lambda x, y, eps, seed: _through().worst_of_straight_through(
            model, x, y, eps, steps, seed
        )
        attacks["soft"] = lambda x, y, eps, seed: _through().worst_of_soft(model, x, y, eps, steps, seed, std)
    attacks["margin"] = lambda x, y, eps, seed: margin(model, x, y, eps, steps, seed, std=std)
    if has_caps(model):
        attacks["uncapped"] = lambda x, y, eps, seed: _through().uncapped(model, x, y, eps, steps, seed)
    if baseline is not None:
        attacks["transfer"] = lambda x, y, eps, seed: _through().transferred(baseline, model, x, y, eps, steps, seed)
    return attacks


def blind_share(model: nn.Module, x: Tensor, y: Tensor, std: Std | None) -> float:
    """Share of the inputs whose margin has an exactly zero gradient for the adaptive attacks too.

    Gradient attacks of every kind leave these inputs where they are: something hides the gradient that no surrogate
    reaches, such as a clamp in plain torch.
    """
    with frozen(model), nullcontext() if std is None else smooth_forward(std=std):
        gradient = margin_gradient(model, x, y)
    return float((gradient.flatten(1) == 0).all(1).float().mean())


# Imported when an attack runs, as their packages are optional.


def _auto() -> Any:
    from dreluop.adaptive.attacks import auto  # noqa: PLC0415

    return auto


def _through() -> Any:
    from dreluop.adaptive.attacks import through_caps  # noqa: PLC0415

    return through_caps
