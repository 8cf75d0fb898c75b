"""Momentum steps on margins of the logits, through the caps where there are some; in both norms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from dreluop.adaptive.attacks.checks import Norm, at_least_one, check_arguments, checked, frozen
from dreluop.adaptive.surrogates import smooth_forward

Std = Mapping[Tensor, Tensor] | float

# The width of the smoothed caps, in standard deviations: each run narrows it from the first to the second.
WIDTHS = (0.3, 0.01)
TARGETS = 5
ROUNDS = 6
# Rounds in a row that find nothing, after which there is no other.
IDLE_ROUNDS = 2
MOMENTUM = 0.2
# A run is tried on the model itself after every so many steps.
STEPS_PER_TRIAL = 3


def margin(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int = 50,
    seed: int = 0,
    *,
    std: Std | None = None,
    norm: Norm = "Linf",
) -> Tensor:
    """Momentum steps that raise another class' logit above the label's.

    A round is a run towards whichever class is next, and one towards each of the ``TARGETS`` likeliest. Rounds are
    repeated from new random starts, at most ``ROUNDS`` times, until ``IDLE_ROUNDS`` in a row turn no input wrong.

    Args:
        model, x, y: as in ``fgsm``.
        eps: radius of the ball in this norm, in units of x, >= 0.
        steps: of each run, >= 1.
        seed: of the random starts.
        std: before each cap, as ``dreluop.adaptive.smooth_forward`` takes it: gradients are those of the model with
            smooth caps, and every success is one on the model itself. None for a model without caps.
        norm: of the ball.

    Returns:
        Adversarial inputs of x's shape, in [0, 1] and in the ball around x; inputs that stay right come back unchanged.

    Raises:
        ValueError: x is not in [0, 1], eps is negative or not finite, or steps < 1.
        RuntimeError: the gradient has NaN.
    """
    check_arguments(x, eps)
    at_least_one("steps", steps)
    x = x.detach()
    result = x.clone()
    if len(x) == 0:
        return result
    with frozen(model):
        with torch.no_grad():
            logits = model(x)
        right = logits.argmax(1) == y
        targets = _others(logits, y).argsort(1, descending=True)[:, : min(TARGETS, logits.shape[1] - 1)]
        idle = 0
        for round_ in range(ROUNDS):
            before = right.clone()
            for number, target in enumerate((None, *targets.T)):
                left = right.nonzero().flatten()
                if not len(left):
                    break
                run = _Run(model, x[left], y[left], eps, norm, None if target is None else target[left])
                # Drawn on the CPU, so that a seed gives the same start on every device.
                generator = torch.Generator().manual_seed(seed * 1000 + round_ * 100 + number)
                found, fooled = run(steps, std, generator)
                result[left[fooled]] = found[fooled]
                right[left] = ~fooled
            idle = idle + 1 if torch.equal(right, before) else 0
            if idle == IDLE_ROUNDS:
                break
    return checked(result, x, eps, norm)


class _Run:
    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: Norm, target: Tensor | None) -> None:
        self.model, self.x, self.y, self.eps, self.norm, self.target = model, x, y, eps, norm, target

    def __call__(self, steps: int, std: Std | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The points, and which of them fool the model."""
        adversarial = self._inside(self.x + self._start(generator))
        found = self.x.clone()
        fooled = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)
        momentum = torch.zeros_like(self.x)
        first, last = WIDTHS
        for step in range(steps):
            done = step / steps
            caps = nullcontext() if std is None else smooth_forward(first * (last / first) ** done, std=std)
            momentum = MOMENTUM * momentum + _unit(self._gradient(adversarial, caps))
            direction = momentum.sign() if self.norm == "Linf" else _unit(momentum)
            adversarial = self._inside(adversarial + self.eps * (1 - done) * direction)
            if step % STEPS_PER_TRIAL == STEPS_PER_TRIAL - 1 or step == steps - 1:
                with torch.no_grad():
                    new = ~fooled & (self.model(adversarial).argmax(1) != self.y)
                found[new] = adversarial[new]
                fooled |= new
        return found, fooled

    def _start(self, generator: torch.Generator) -> Tensor:
        if self.norm == "Linf":
            noise = 2 * torch.rand(self.x.shape, generator=generator) - 1
        else:
            noise = _unit(torch.randn(self.x.shape, generator=generator))
        return self.eps * noise.to(self.x)

    def _inside(self, adversarial: Tensor) -> Tensor:
        """The nearest point of the ball, then of [0, 1], which is no farther from x."""
        change = adversarial - self.x
        if self.norm == "Linf":
            change = change.clamp(-self.eps, self.eps)
        else:
            change = change * (self.eps / _lengths(change).clamp(min=self.eps or 1.0))
        return (self.x + change).clamp(0, 1)

    def _gradient(self, adversarial: Tensor, caps: AbstractContextManager[None]) -> Tensor:
        with torch.enable_grad(), caps:
            return margin_gradient(self.model, adversarial, self.y, self.target)


def margin_gradient(model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Gradient of each sample's margin, the logit of the target (None: of the likeliest other class) less the label's.

    Raises:
        RuntimeError: the gradient has NaN.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = model(x)
        other = _others(logits, y).amax(1) if target is None else logits.gather(1, target[:, None])[:, 0]
        gradient = torch.autograd.grad((other - logits.gather(1, y[:, None])[:, 0]).sum(), x)[0]
    if bool(gradient.isnan().any()):
        raise RuntimeError("the model's margin has NaN in its input gradient; no attack can follow it")
    return gradient


def _others(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -math.inf)


def _lengths(change: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(change.flatten(1), dim=1).view(-1, *[1] * (change.ndim - 1))
    return lengths


def _unit(change: Tensor) -> Tensor:
    """Each sample's change, of L2 length 1; a zero stays."""
    # Squares of the gradients of tiny caps would be 0.
    peaks = change.flatten(1).abs().amax(1).view(-1, *[1] * (change.ndim - 1))
    change = change / torch.where(peaks > 0, peaks, 1)
    return change / _lengths(change).clamp(min=1)
