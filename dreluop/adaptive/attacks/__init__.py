"""Attacks: each a function ``(model, x, y, eps) -> adversarial x``, on the model in eval mode with frozen weights.

Here the two that the demo uses; ``auto`` (AutoAttack and its parts) and ``carlini`` bring packages of their own, and
``adaptive`` holds those that know of the caps.
"""

from dreluop.adaptive.attacks.checks import frozen, input_gradient, zero_gradient_share
from dreluop.adaptive.attacks.gradient import fgsm, pgd

__all__ = ["fgsm", "frozen", "input_gradient", "pgd", "zero_gradient_share"]
