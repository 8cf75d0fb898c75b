"""Gradients that pass the cap: ``surrogate_backward`` changes only the gradients, ``smooth_forward`` the values too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dreluop._internal import checks
from dreluop.autograd import surrogate

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
    - ``"soft"``: ``g * (sigmoid(t / w) - sigmoid((t - cap) / w))`` with ``w = tau * std``, the exact slope (1 between 0
      and the cap) smoothed over the width w. Reaches units on both sides of the step that a small cap makes of the
      activation, where it is about ``g * cap / (4 * w)`` at most: in half types a tiny cap may round it to 0. Far
      inside a large cap it is g; under an infinite one it is ``g * sigmoid(t / w)``. Saves t, where the exact backward
      needs only y: one more tensor of x's size per layer, and with ``inplace=True`` a copy of x is made.

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
            root mean square of its layer's others, at the cost of one synchronization with a GPU per layer. Else a
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
    with surrogate.chosen(surrogate.Surrogate(mode, tau, std)):
        yield


@contextmanager
def smooth_forward(tau: float = 0.1, *, std: float | Mapping[Tensor, float | Tensor] | None = None) -> Iterator[None]:
    """Replace the activation by a smooth one: every capped activation called inside the block changes its values.

    With t the activation before the cap (bias and residual added) and ``w = tau * std``, y is
    ``w * (softplus(t / w) - softplus((t - cap) / w))``: the capped activation, smoothed by a logistic density of width
    w. A small cap gives about ``cap * sigmoid(t / w)``, an infinite one a softplus, a cap <= 0 gives 0. Gradients to x,
    bias, residual and cap are those of the smooth function (to x the ``"soft"`` form of ``surrogate_backward``), so
    they agree with the values, which a surrogate's do not: steps along them reach inputs that surrogates do not find.
    What they find must be tried on the model outside the block.

    Like ``surrogate_backward`` in all else: for attacks only, chosen when forward runs (with or without gradients), for
    the thread that entered, nested with it; penalties do not change.

    Args:
        tau: the width in standard deviations, finite and > 0.
        std: the standard deviation of t, as ``surrogate_backward`` takes it.

    Raises:
        ValueError, TypeError, RuntimeError: as ``surrogate_backward``.
    """
    tau = _positive("tau", tau)
    std = None if std is None else _checked_std(std)
    with surrogate.chosen(surrogate.Surrogate("smooth", tau, std)):
        yield


def measure_std(model: nn.Module, *inputs: Any) -> dict[Tensor, Tensor]:
    """The standard deviation before each cap, for ``std`` of ``surrogate_backward("soft")`` and ``smooth_forward``.

    So that an attack on one sample, or on few, has the width of a larger batch, and one that does not change with the
    sample's neighbors.

    Args:
        model: called once as ``model(*inputs)``, without gradients, in the mode it is in (``eval()``, mostly). A cap
            that is used several times gets the root mean square.

    Returns:
        For each cap of a module or of a functional call with a tensor, a tensor of its shape.

    Raises:
        ValueError: the model calls no capped activation, or a layer is constant over the inputs.
    """
    found: dict[Tensor, list[Tensor]] = {}

    def look(x: Tensor, cap: Tensor, dim: int) -> None:
        found.setdefault(cap, []).append(surrogate.batch_std(x, cap, dim))

    with surrogate.chosen(surrogate.Surrogate("soft", look=look)), torch.no_grad():
        model(*inputs)
    if not found:
        raise ValueError(f"model: a {type(model).__name__} called no capped activation; expected at least one")
    return {cap: torch.stack(values).square().mean(0).sqrt() for cap, values in found.items()}


def reached_caps(model: nn.Module, *inputs: Any) -> list[Tensor]:
    """The cap of every capped activation that the model calls, in order: what the contexts of this module change.

    An empty list says that an attack through them is the ordinary one: the model has no cap, or one made of other
    operators (``torch.clamp``), which nothing here can see.

    Args:
        model: called once as ``model(*inputs)``, without gradients, in the mode it is in.
    """
    found: list[Tensor] = []
    with surrogate.chosen(surrogate.Surrogate("soft", look=lambda x, cap, dim: found.append(cap))), torch.no_grad():
        model(*inputs)
    return found


def _positive(name: str, value: Any) -> float:
    number = checks.number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}: got {value}; expected a finite number > 0")
    return number


def _checked_std(std: Any) -> float | dict[Tensor, float | Tensor]:
    if not isinstance(std, Mapping):
        return _positive("std", std)
    checked: dict[Tensor, float | Tensor] = {}
    for cap, value in std.items():
        checks.float_tensor("std: a cap", cap)
        if not isinstance(value, Tensor):
            checked[cap] = _positive("std", value)
            continue
        checks.float_tensor("std", value)
        if value.shape != cap.shape:
            raise ValueError(f"std: got shape {tuple(value.shape)}; expected the cap's, {tuple(cap.shape)}")
        if not bool((value.isfinite() & (value > 0)).all()):
            raise ValueError("std: got values that are not finite and > 0")
        checked[cap] = value.detach()
    return checked
