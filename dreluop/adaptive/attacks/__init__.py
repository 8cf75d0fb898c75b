"""Attacks: each a function ``(model, x, y, eps) -> adversarial x``, on the model in eval mode with frozen weights.

Here those that need only torch. ``auto`` (AutoAttack and its parts), ``carlini`` and ``through_caps`` need
``pip install dreluop[robustness]``.
"""

from dreluop.adaptive.attacks.checks import accuracy, frozen, input_gradient, zero_gradient_share
from dreluop.adaptive.attacks.gradient import fgsm, pgd
from dreluop.adaptive.attacks.margins import margin, margin_gradient

__all__ = ["accuracy", "fgsm", "frozen", "input_gradient", "margin", "margin_gradient", "pgd", "zero_gradient_share"]
