"""What every attack checks and uses, and the share of inputs that attacks along the gradient cannot move."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Norm = Literal["Linf", "L2"]

# Of x +- eps in float32 near 1.
_ROUNDING = 1e-6


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the inputs that the model, in eval mode, classifies as y."""
    with frozen(model), torch.no_grad():
        return float((model(x).argmax(dim=1) == y).float().mean())


def zero_gradient_share(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the inputs whose gradient of the loss is exactly zero in every component.

    An attack that follows the gradient cannot move these inputs, whether or not a nearby input fools the model:
    gradient masking, not robustness.

    Args:
        model: gives logits of shape (N, classes).
        x: inputs, the first dimension is the sample.
        y: labels, int64, shape (N,).

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


def check_arguments(x: Tensor, eps: float) -> None:
    """
    Raises:
        ValueError: x is not in [0, 1], or eps is negative or not finite.
    """
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps: got {eps}; expected a finite number >= 0")
    if not _in_range(x):
        raise ValueError("x: got values outside [0, 1] or NaN; expected inputs in [0, 1]")


def at_least_one(name: str, value: int) -> None:
    """
    Raises:
        ValueError: value is less than 1.
    """
    if value < 1:
        raise ValueError(f"{name}: got {value}; expected at least 1")


def _in_range(x: Tensor) -> bool:
    return bool(((x >= 0) & (x <= 1)).all())  # False for NaN too.


def distances(adversarial: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """Of each sample; shape (N,)."""
    change = (adversarial - x).flatten(1)
    found: Tensor = torch.linalg.vector_norm(change, ord=math.inf if norm == "Linf" else 2, dim=1)
    return found


def checked(adversarial: Tensor, x: Tensor, eps: float, norm: Norm = "Linf") -> Tensor:
    """The adversarial inputs, if they are what an attack may give.

    Raises:
        RuntimeError: they are not in [0, 1], have NaN, or lie outside the ball.
    """
    if not _in_range(adversarial):
        raise RuntimeError("the attack left [0, 1] or gave NaN")
    distance = float(distances(adversarial, x, norm).max()) if x.numel() else 0.0
    if distance > eps + _ROUNDING * max(1.0, eps):
        raise RuntimeError(f"the attack left the ball: distance {distance} > eps {eps}")
    return adversarial
