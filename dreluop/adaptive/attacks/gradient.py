"""The paper's two plain attacks along the gradient, in the L-infinity ball."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dreluop.adaptive.attacks.checks import at_least_one, check_arguments, checked, frozen, input_gradient


def fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Fast gradient sign method: one step of eps along the sign of the loss's gradient (Goodfellow et al., 2015).

    Args:
        model: gives logits of shape (N, classes); attacked in eval mode with frozen weights, both restored.
        x: inputs in [0, 1], the first dimension is the sample; not changed.
        y: labels, int64, shape (N,).
        eps: radius of the L-infinity ball, in units of x, >= 0.

    Returns:
        Adversarial inputs of x's shape, in [0, 1] and in the ball around x. An input with zero gradient comes back
        unchanged.

    Raises:
        ValueError: x is not in [0, 1], or eps is negative or not finite.
        RuntimeError: the gradient has NaN.
    """
    check_arguments(x, eps)
    x = x.detach().clone()
    with frozen(model):
        step = eps * input_gradient(model, x, y).sign()
    return checked((x + step).clamp(0, 1), x, eps)


def pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int = 40, step_size: float | None = None, seed: int = 0
) -> Tensor:
    """Projected gradient descent from a random start in the ball (Madry et al., 2018).

    Args:
        model, x, y, eps: as in ``fgsm``.
        steps: number of gradient steps, >= 1.
        step_size: of each step; None is ``eps / 10``.
        seed: of the random start.

    Returns:
        Adversarial inputs of x's shape, in [0, 1] and in the ball around x. An input whose gradient is zero at its
        random start stays there.

    Raises:
        ValueError: as ``fgsm``; also steps < 1 or a step_size that is negative or not finite.
        RuntimeError: the gradient has NaN.
    """
    check_arguments(x, eps)
    at_least_one("steps", steps)
    step_size = eps / 10 if step_size is None else step_size
    if not 0 <= step_size < math.inf:
        raise ValueError(f"step_size: got {step_size}; expected a finite number >= 0")
    x = x.detach().clone()
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    # Drawn on the CPU, so that a seed gives the same start on every device.
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    adversarial = (x + eps * (2 * noise - 1).to(x)).clamp(low, high)
    with frozen(model):
        for _ in range(steps):
            adversarial = adversarial + step_size * input_gradient(model, adversarial, y).sign()
            adversarial = adversarial.clamp(low, high)
    return checked(adversarial, x, eps)
