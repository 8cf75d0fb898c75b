"""Caps in a ``torch.optim`` optimizer: a group of their own, and a floor under them (docs/training.md)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dreluop._internal import cap_state, checks
from dreluop._internal.caps_given import caps_of
from dreluop.caps.statistics import capped_layers
from dreluop.modules import DReLU

MINIMUM = 1e-3


def param_groups(
    model: nn.Module,
    lr: float | Tensor,
    cap_lr: float | Tensor | None = None,
    balancer: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Two parameter groups for an optimizer of ``torch.optim``: the weights, and the caps of the DReLUs.

    The caps stay out of ``weight_decay``, which would be a second penalty. Every parameter is in one group, once,
    frozen ones too (an optimizer leaves them alone as long as they have no gradient).

    Args:
        model: with DReLUs; it may be compiled or in DistributedDataParallel.
        lr: learning rate of the weights, finite and >= 0, or such a floating-point tensor of one element.
        cap_lr: that of the caps; None: the same. With Adam about ``10 * lr`` is best.
        balancer: None: the penalty is the loss's business (``loss + cap_penalty(model, balancer)``). A number: the
            caps' ``weight_decay`` is ``2 * balancer``, which is the penalty's gradient, at no cost; **do not add**
            ``cap_penalty`` **to the loss too**. Only for optimizers that add ``weight_decay`` to the gradient, such as
            ``SGD`` and ``Adam``. ``AdamW`` (and ``Adam(decoupled_weight_decay=True)``) takes ``2 * balancer * cap_lr``
            of each cap in each step instead, which is another training; one without weight decay (``Rprop``) ignores
            it. The groups are made before the optimizer is, so this function cannot tell.
        weight_decay: of the weights.

    Returns:
        ``[{"name": "weights", ...}, {"name": "caps", ...}]`` with ``params``, ``lr`` and ``weight_decay``.

    Raises:
        TypeError: model is no module, a number is none, or a tensor is not of floating point.
        ValueError: model has no DReLU, a LazyDReLU has no shape yet, a cap is no parameter of the model (but made of
            one: parametrized, or flattened by FSDP), or a number is negative or not finite.
    """
    layers: dict[str, DReLU] = capped_layers(model, (DReLU,), also=(cap_state.LearnedCap,))
    rate = _rate("lr", lr)
    cap_rate = _rate("cap_lr", cap_lr) if cap_lr is not None else _another(rate)
    cap_decay = 0.0 if balancer is None else 2 * checks.penalty_weight(balancer)
    decay = checks.at_least_zero("weight_decay", weight_decay)
    parameters = list(model.parameters())
    known = {id(parameter) for parameter in parameters}
    for name, layer in layers.items():
        if id(layer.trained) not in known:
            raise ValueError(
                f"model: the cap of {name!r} is none of its parameters but made of one (parametrized, or flattened by "
                "FSDP; use fully_shard, or use_orig_params=True)"
            )
    caps = {id(layer.trained) for layer in layers.values()}
    return [
        {
            "name": "weights",
            "params": [one for one in parameters if id(one) not in caps],
            "lr": rate,
            "weight_decay": decay,
        },
        {
            "name": "caps",
            "params": [one for one in parameters if id(one) in caps],
            "lr": cap_rate,
            "weight_decay": cap_decay,
        },
    ]


@torch.no_grad()
def project_caps(caps: Tensor | Iterable[Tensor] | nn.Module, minimum: float = MINIMUM) -> None:
    """Set every cap below ``minimum`` to it; for after an optimizer's step. Frozen caps and NaN stay as they are.

    Adam carries caps below 0, where a unit is off. Set to 0 it would be off for good, as loss and penalty both have
    gradient 0 there; from above 0 the loss can raise it again.

    Args:
        caps: as in ``cap_penalty``.
        minimum: a number the caps' dtype can hold, > 0; or 0, for caps that may die.

    Raises:
        TypeError, ValueError: caps are none, or one is no parameter (but made of one); minimum is negative, not finite
            or out of the range of a cap's dtype. Nothing is changed then.
    """
    minimum = checks.at_least_zero("minimum", minimum)
    for cap in _projected(caps, minimum):
        cap.clamp_(min=minimum)


def project_caps_after_step(
    optimizer: torch.optim.Optimizer, caps: Tensor | Iterable[Tensor] | nn.Module, minimum: float = MINIMUM
) -> RemovableHandle:
    """``project_caps`` after every step of an optimizer.

    Args:
        optimizer: that trains the caps, or a wrapper of it (accelerate, Lightning, Lookahead). Pickled or copied, it
            loses its hooks, as torch's optimizers do. Where a wrapper calls no hooks itself, those of the optimizer in
            it run, before whatever the wrapper does after the inner step. (Lookahead then averages projected caps.)
        caps: as in ``cap_penalty``; a module's are those that it has now.
        minimum: as in ``project_caps``.

    Returns:
        A handle, whose ``remove()`` ends it.

    Raises:
        TypeError, ValueError: as in ``project_caps``; optimizer is none, neither it nor one in it calls hooks, or it
            does not hold a cap that is to be trained (it was made before ``dreluop.surgery``, say).
    """
    if not _is_optimizer(optimizer):
        raise TypeError(f"optimizer: got {type(optimizer).__name__}; expected a torch.optim.Optimizer")
    if isinstance(caps, nn.Module):
        cap_state.reshard(caps)
    tensors = caps_of(caps)
    projected = _projected(caps if isinstance(caps, nn.Module) else tensors, minimum)
    hooked = _hooked(optimizer)
    if not hooked:
        raise ValueError(
            f"optimizer: got a {type(optimizer).__name__}, whose step calls no hooks, and which holds no optimizer "
            "that calls them; call project_caps after its step"
        )
    held = {id(parameter) for one in hooked for group in one.param_groups for parameter in group["params"]}
    missing = sum(id(cap) not in held for cap in projected)
    if missing:
        raise ValueError(f"optimizer: got one without {missing} of the {len(tensors)} caps; make it of them too")
    # Twice changes nothing: a wrapper may call the inner step, or the user each of them.
    hooks = [one._optimizer_step_post_hooks for one in hooked]
    handle = RemovableHandle(hooks[0], extra_dict=hooks[1:])
    for one in hooks:
        one[handle.id] = lambda *_: project_caps(tensors, minimum)
    return handle


def _is_optimizer(value: Any) -> bool:
    if isinstance(value, torch.optim.Optimizer):
        return True
    return not isinstance(value, type) and callable(getattr(value, "step", None)) and hasattr(value, "param_groups")


def _hooked(optimizer: Any) -> list[torch.optim.Optimizer]:
    """Those whose ``step`` calls hooks: of an optimizer, and of those that it holds."""
    found: list[torch.optim.Optimizer] = []
    waiting, seen = [optimizer], set[int]()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        values = dict(getattr(one, "__dict__", {}))
        # A subclass that does not call Optimizer.__init__ may have the method that registers hooks, and call none.
        if "_optimizer_step_post_hooks" in values and getattr(type(one).step, "hooked", False):
            found.append(one)
        for value in values.values():
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            waiting += [part for part in parts if _is_optimizer(part)]
    return found


def _projected(caps: Tensor | Iterable[Tensor] | nn.Module, minimum: float) -> list[Tensor]:
    """The caps that are not frozen, checked."""
    least = checks.at_least_zero("minimum", minimum)
    if isinstance(caps, nn.Module):
        cap_state.reshard(caps)
    trained = []
    for index, cap in enumerate(caps_of(caps)):
        # Of a parametrized module, say: writing over it would change no parameter.
        if not isinstance(cap, nn.Parameter) and not (cap.is_leaf and cap.requires_grad):
            raise ValueError(
                f"caps[{index}]: got what is no parameter{_name_of_made(caps)}; expected one, or a leaf that requires "
                "grad"
            )
        if not cap.requires_grad:
            continue
        if cap.is_meta:
            raise ValueError(f"caps[{index}]: got a cap on the meta device, where it has no value")
        if cap.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(f"caps[{index}]: got a cap made in inference mode, which may be changed only there")
        range_of = torch.finfo(cap.dtype)
        if least != 0 and not range_of.tiny <= least <= range_of.max:
            raise ValueError(
                f"minimum: got {minimum}; expected 0 or {range_of.tiny:g} to {range_of.max:g}, as caps[{index}] is "
                f"{cap.dtype}"
            )
        trained.append(cap)
    return trained


def _rate(name: str, value: Any) -> float | Tensor:
    if not isinstance(value, Tensor):
        return checks.at_least_zero(name, value)
    if value.numel() != 1:
        raise ValueError(f"{name}: got a tensor of shape {tuple(value.shape)}; expected one element")
    # A scheduler's write into an integer would be rounded to 0.
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name}: got a tensor of {value.dtype}; expected a floating-point dtype")
    if value.is_meta:
        raise ValueError(f"{name}: got a tensor on the meta device, where it has no value")
    checks.at_least_zero(name, value.item())
    return value


def _another(rate: float | Tensor) -> float | Tensor:
    """A copy, as a scheduler writes into each group's tensor. The rate itself where a copy would be no leaf."""
    return rate.clone() if isinstance(rate, Tensor) and not rate.requires_grad else rate


def _name_of_made(caps: Any) -> str:
    layers = capped_layers(caps, (DReLU,), also=(cap_state.LearnedCap,)) if isinstance(caps, nn.Module) else {}
    made = [name for name, layer in layers.items() if not isinstance(layer._parameters.get("cap"), nn.Parameter)]
    return f" but made of one, the cap of {made[0]!r}" if made else ""
