"""The paper's attacks in the L-infinity ball, and the share of inputs that such attacks cannot move."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

# Of x +- eps in float32 near 1.
_ROUNDING = 1e-6


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
    _check_arguments(x, eps)
    x = x.detach().clone()
    with frozen(model):
        step = eps * input_gradient(model, x, y).sign()
    return _checked((x + step).clamp(0, 1), x, eps)


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
    _check_arguments(x, eps)
    if steps < 1:
        raise ValueError(f"steps: got {steps}; expected at least 1")
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
    return _checked(adversarial, x, eps)


def zero_gradient_share(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the inputs whose gradient of the loss is exactly zero in every component.

    An attack that follows the gradient cannot move these inputs, whether or not a nearby input fools the model:
    gradient masking, not robustness.

    Args:
        model, x, y: as in ``fgsm``.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: x holds no sample.
        RuntimeError: the gradient has NaN.
    """
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}; expected at least one sample")
    with frozen(model):
        gradient = input_gradient(model, x.detach().clone(), y)
    return float((gradient.flatten(1) == 0).all(dim=1).float().mean())


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of each sample's cross-entropy to its own input; x's shape.

    The losses are summed, not averaged: a mean would scale by 1/N and could round small gradients to zero.

    Raises:
        RuntimeError: the gradient has NaN.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(model(x), y, reduction="sum")
        gradient = torch.autograd.grad(loss, x)[0]
    # sign(NaN) is 0: an attack would go on, and leave the input where it is.
    if bool(gradient.isnan().any()):
        raise RuntimeError("the model's loss has NaN in its input gradient; no attack can follow it")
    return gradient


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model in eval mode with weights that need no gradient; afterwards every flag is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    needs = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, need in needs:
            parameter.requires_grad_(need)


def _check_arguments(x: Tensor, eps: float) -> None:
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps: got {eps}; expected a finite number >= 0")
    if not _in_range(x):
        raise ValueError("x: got values outside [0, 1] or NaN; expected inputs in [0, 1]")


def _in_range(x: Tensor) -> bool:
    return bool(((x >= 0) & (x <= 1)).all())  # False for NaN too.


def _checked(adversarial: Tensor, x: Tensor, eps: float) -> Tensor:
    if not _in_range(adversarial):
        raise RuntimeError("the attack left [0, 1] or gave NaN")
    distance = float((adversarial - x).abs().max()) if x.numel() else 0.0
    if distance > eps + _ROUNDING:
        raise RuntimeError(f"the attack left the ball: distance {distance} > eps {eps}")
    return adversarial
