"""Attacking a capped model honestly: gradients that pass the cap, and the same model without caps.

Where all units of a layer are off or capped, the exact input gradient is zero, and an attack that follows it finds
nothing: gradient masking, not robustness. An attack counts only if it knows of the caps. What is here changes how
gradients are computed, never what the model gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dreluop import surrogate, validation
from dreluop.uncapped import UncappedReLU, remove_caps

__all__ = ["UncappedReLU", "measure_std", "remove_caps", "surrogate_backward"]

MODES = ("straight_through", "soft")


@contextmanager
def surrogate_backward(
    mode: Literal["straight_through", "soft"] = "straight_through",
    tau: float = 0.1,
    *,
    std: float | Mapping[Tensor, float | Tensor] | None = None,
) -> Iterator[None]:
    """Let the gradient through the cap: every capped activation called inside the block has a surrogate backward.

    With t the activation before the cap (bias and residual added) and g the gradient of y, the gradient to x (and to
    bias and residual) is

    - ``"straight_through"``: g wherever y is on, also at its cap. Costs no memory.
    - ``"soft"``: ``g * s * (1 - s)`` with ``s = sigmoid((t - cap / 2) / (tau * std))``. Reaches units on both sides of
      the step that a small cap makes of the activation. Saves t, where the exact backward needs only y: one more
      tensor of x's size per layer, and with ``inplace=True`` a copy of x is made.

    Under a cap <= 0 both are 0, as y is 0 whatever x is. The choice is made when forward runs: backward may come after
    the block, and what was recorded outside keeps its exact backward. It holds for the thread that entered; threads
    started inside (``DataParallel`` over several devices) do not inherit it. Blocks nest; the innermost counts.
    Outputs and penalties do not change.

    For attacks only, never for training: use ``torch.autograd.grad(loss, inputs)`` or freeze the weights. Caps and
    penalties keep their ordinary gradient for the g that reaches them, but whatever lies before a capped activation
    gets a gradient that is not that of the loss. Source: backward pass differentiable approximation, Athalye et al.,
    ICML 2018.

    Works in ``torch.autograd`` to any order and in ``torch.func.grad`` and ``vjp``; a compiled model leaves its graph
    at each capped activation (an error with ``fullgraph=True``), in every thread while one is inside. Not covered:
    operators called directly, as exported programs do (an error); reentrant activation checkpointing, which runs
    forward again in backward and follows the block that is open then (with ``use_reentrant=False``, forward and
    backward on different sides of a soft block raise ``CheckpointError``).

    Args:
        mode: the form.
        tau: of the soft form: its width in standard deviations, finite and > 0.
        std: of the soft form: the standard deviation of t. None takes it from each batch, over the elements that share
            a cap (the layer; the channel; the neuron over the batch), where a cap under which t is constant gets the
            root mean square of its layer's others, at the cost of one synchronisation with a GPU per layer. Else a
            number for all, or a mapping from cap to a number or a tensor of the cap's shape, as ``measure_std`` gives.

    Raises:
        ValueError: mode is unknown, tau or std is not finite and > 0, std is given for the other form or has not the
            cap's shape; when a capped activation is called: the batch has no standard deviation (a neuron cap and one
            sample), or std has no entry for the cap.
        TypeError: tau or std is of another type.
        RuntimeError: a capped activation is called under ``torch.vmap`` or in forward mode.
    """
    if mode not in MODES:
        raise ValueError(f'mode: got {mode!r}; expected "straight_through" or "soft"')
    tau = _positive("tau", tau)
    if std is not None:
        if mode != "soft":
            raise ValueError(f'std: got one for mode="{mode}"; only "soft" has a width')
        std = _checked_std(std)
    with surrogate.chosen(surrogate.Surrogate(mode == "soft", tau, std)):
        yield


def measure_std(model: nn.Module, *inputs: Any) -> dict[Tensor, Tensor]:
    """The standard deviation before each cap, for ``surrogate_backward("soft", std=...)``.

    So that an attack on one sample, or on few, has the width of a larger batch, and one that does not change with the
    sample's neighbours.

    Args:
        model: called once as ``model(*inputs)``, without gradients, in the mode it is in (``eval()``, mostly). A cap
            that is used several times gets the root mean square.

    Returns:
        For each cap of a module or of a functional call with a tensor, a tensor of its shape.

    Raises:
        ValueError: the model calls no capped activation, or a layer is constant over the inputs.
    """
    found: dict[Tensor, list[Tensor]] = {}
    with surrogate.chosen(surrogate.Surrogate(soft=True, measured=found)), torch.no_grad():
        model(*inputs)
    if not found:
        raise ValueError(f"model: a {type(model).__name__} called no capped activation; expected at least one")
    return {cap: torch.stack(values).square().mean(0).sqrt() for cap, values in found.items()}


def _positive(name: str, value: Any) -> float:
    number = validation.number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}: got {value}; expected a finite number > 0")
    return number


def _checked_std(std: Any) -> float | dict[Tensor, float | Tensor]:
    if not isinstance(std, Mapping):
        return _positive("std", std)
    checked: dict[Tensor, float | Tensor] = {}
    for cap, value in std.items():
        validation.float_tensor("std: a cap", cap)
        if not isinstance(value, Tensor):
            checked[cap] = _positive("std", value)
            continue
        validation.float_tensor("std", value)
        if value.shape != cap.shape:
            raise ValueError(f"std: got shape {tuple(value.shape)}; expected the cap's, {tuple(cap.shape)}")
        if not bool((value.isfinite() & (value > 0)).all()):
            raise ValueError("std: got values that are not finite and > 0")
        checked[cap] = value.detach()
    return checked
