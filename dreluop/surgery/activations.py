"""Which modules, and which nodes of a traced graph, are a ReLU or a ReLU with a fixed bound."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from dreluop.surgery import inplace


@dataclass(frozen=True)
class Activation:
    """``max(0, min(x, bound))``; ``bound`` is None for a plain ReLU."""

    bound: float | None
    inplace: bool


def forward_of(module: nn.Module) -> Any:
    """The forward of a module's class; None for TorchScript, which has none to ask, and for one set on the instance."""
    frozen = isinstance(module, torch.jit.ScriptModule) or "forward" in vars(module)
    return None if frozen else type(module).forward


def of_module(module: nn.Module) -> Activation | None:
    """What a module computes, if it is ReLU, ReLU6 or Hardtanh(0, c), or a subclass with the same forward."""
    forward = forward_of(module)
    if isinstance(module, nn.ReLU) and forward is nn.ReLU.forward:
        return Activation(None, module.inplace)
    if isinstance(module, nn.Hardtanh) and forward is nn.Hardtanh.forward:
        return _bounded(module.min_val, module.max_val, module.inplace)
    return None


def of_call(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Activation | None:
    """What a call of a function or (by its name) of a method of Tensor computes."""
    if function in _RELUS:
        return Activation(None, function not in ("relu", torch.relu))
    names = _PARAMETERS.get(function)
    if names is None:
        return None
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    inplace = given.get("inplace", function is functional.hardtanh_)
    if not isinstance(inplace, bool):
        return None
    if function is functional.relu:
        return Activation(None, inplace)
    high = 6.0 if function is functional.relu6 else given.get("max_val", 1.0)
    return _bounded(0.0 if function is functional.relu6 else given.get("min_val", -1.0), high, inplace)


_RELUS: tuple[Any, ...] = ("relu", torch.relu, "relu_", torch.relu_)
_PARAMETERS: dict[Any, tuple[str, ...]] = {
    functional.relu: ("input", "inplace"),
    functional.relu6: ("input", "inplace"),
    functional.hardtanh: ("input", "min_val", "max_val", "inplace"),
    functional.hardtanh_: ("input", "min_val", "max_val"),
}


def _bounded(low: Any, high: Any, inplace: bool) -> Activation | None:
    if not all(isinstance(value, int | float) for value in (low, high)):
        return None
    return Activation(float(high), inplace) if low == 0 and 0 < high < math.inf else None


@dataclass(frozen=True)
class Sum:
    """``x + residual`` that feeds one activation only; ``inplace``: the sum was written over x."""

    node: fx.Node
    x: fx.Node
    residual: fx.Node
    inplace: bool


# The outputs of these are fresh memory: nobody else holds what an in-place sum writes over.
_FRESH = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.Linear, nn.GroupNorm, nn.LayerNorm)
_SUMS: dict[Any, bool] = {
    operator.add: False,
    torch.add: False,
    "add": False,
    inplace.FUNCTIONS["iadd"]: True,
    "add_": True,
}


def sum_before(activation: fx.Node, module_of: Callable[[str], nn.Module]) -> Sum | str | None:
    """The residual sum that an activation node takes and that can be fused into it.

    Returns:
        None where its input is no sum of two tensors, a reason where the sum cannot be fused.
    """
    node = input_of(activation)
    if node is None or node.op not in ("call_function", "call_method") or node.target not in _SUMS:
        return None
    if len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1 or set(node.kwargs) - {"alpha"}:
        return None
    x, residual = node.args
    if not isinstance(x, fx.Node) or not isinstance(residual, fx.Node):
        return None
    total = Sum(node, x, residual, _SUMS[node.target])
    return _why_not(total, activation, module_of) or total


def _why_not(total: Sum, activation: fx.Node, module_of: Callable[[str], nn.Module]) -> str:
    x = total.x
    fresh = x.op == "call_module" and _is_fresh(module_of(str(x.target)))
    seen_elsewhere = not fresh or len(x.users) != 1 or x is total.residual
    reasons = {
        "the sum has another user": len(total.node.users) != 1,
        "other operations run between the sum and the activation": total.node.next is not activation,
        "an addend is a parameter or buffer": "get_attr" in (x.op, total.residual.op),
        "the sum is written over a tensor that may be seen elsewhere": total.inplace and seen_elsewhere,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def _is_fresh(module: nn.Module) -> bool:
    if forward_of(module) is nn.Sequential.forward:
        return len(module) > 0 and _is_fresh(module[-1])  # type: ignore[arg-type, index]
    return isinstance(module, _FRESH)


def input_of(node: fx.Node) -> fx.Node | None:
    """The node's first argument, also when it was given by name."""
    value = node.args[0] if node.args else node.kwargs.get("input")
    return value if isinstance(value, fx.Node) else None
