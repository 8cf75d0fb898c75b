"""Attacks that know of the caps.

Each runs a few attacks in sequence; an input that one of them turned wrong is returned as that one left it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from dreluop.adaptive.attacks.auto import apgd_ce, apgd_dlr, apgd_targeted
from dreluop.adaptive.attacks.checks import frozen
from dreluop.adaptive.attacks.margins import Std
from dreluop.adaptive.surrogates import surrogate_backward
from dreluop.adaptive.uncapped import remove_caps

Attack = Callable[[Tensor, Tensor], Tensor]

# The widths of the soft form that were the strongest in the study: for the cross-entropy and for the targeted loss.
SOFT_WIDTHS: tuple[float, ...] = (0.1, 0.3)
# Of every targeted attack here: nearly all that it turns wrong goes to one of the likeliest classes.
TARGETS = 5


def worst_of_straight_through(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int = 100, seed: int = 0
) -> Tensor:
    """Auto-PGD (cross-entropy, then targeted) whose backward pass goes through every cap.

    Args:
        model: with capped activations; attacked in eval mode with frozen weights, both restored.
        x: float32 inputs in [0, 1], the first dimension is the sample; not changed.
        y: labels, int64, shape (N,).
        eps: radius of the L-infinity ball.
        steps: of each run.
        seed: of the random starts.

    Returns:
        Adversarial inputs of x's shape, in [0, 1] and in the ball around x.

    Raises:
        ValueError, RuntimeError: as ``apgd_ce``.
    """
    return _in_turn(model, x, y, _surrogate(model, eps, steps, seed, "straight_through"))


def worst_of_soft(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int = 100,
    seed: int = 0,
    std: Std | None = None,
) -> Tensor:
    """The same with the soft surrogate, at each of ``SOFT_WIDTHS``.

    Args, Returns, Raises: as ``worst_of_straight_through``.

        std: before each cap, as ``surrogate_backward`` takes it; None takes it from each batch.
    """
    attacks = [run for tau in SOFT_WIDTHS for run in _surrogate(model, eps, steps, seed, "soft", tau, std)]
    return _in_turn(model, x, y, attacks)


def uncapped(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int = 100, seed: int = 0) -> Tensor:
    """Auto-PGD on the same weights without the caps, by losses that do not depend on the scale of the logits.

    Without caps the logits are hundreds of times larger, and the cross-entropy has no gradient left.

    Args, Returns, Raises: as ``worst_of_straight_through``.
    """
    return transferred(remove_caps(model), model, x, y, eps, steps, seed)


def transferred(
    source: nn.Module, model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int = 100, seed: int = 0
) -> Tensor:
    """Auto-PGD on another model, tried on this one.

    Args, Returns, Raises: as ``worst_of_straight_through``.

        source: the model that is attacked.
    """
    attacks: list[Attack] = [
        lambda x, y: apgd_dlr(source, x, y, eps, steps, seed, keep_best=True),
        lambda x, y: apgd_targeted(source, x, y, eps, steps, seed, TARGETS),
    ]
    return _in_turn(model, x, y, attacks)


def _surrogate(
    model: nn.Module,
    eps: float,
    steps: int,
    seed: int,
    mode: Literal["straight_through", "soft"],
    tau: float = 0.1,
    std: Std | None = None,
) -> list[Attack]:
    def run(attack: Callable[..., Tensor]) -> Attack:
        def attacked(x: Tensor, y: Tensor) -> Tensor:
            with surrogate_backward(mode, tau, std=std):
                return attack(model, x, y, eps, steps, seed)

        return attacked

    return [run(apgd_ce), run(partial(apgd_targeted, targets=TARGETS))]


def _in_turn(model: nn.Module, x: Tensor, y: Tensor, attacks: Sequence[Attack]) -> Tensor:
    result = x.detach().clone()
    right = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for attack in attacks:
        left = right.nonzero().flatten()
        if not len(left):
            break
        # Those that every attack leaves right keep the last one's point.
        result[left] = attack(x[left], y[left])
        with frozen(model), torch.no_grad():
            right[left] = model(result[left]).argmax(1) == y[left]
    return result
