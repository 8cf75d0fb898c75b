"""Which modules, functions and methods are a ReLU or a ReLU with a fixed bound."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Activation:
    """``max(0, min(x, bound))``; ``bound`` is None for a plain ReLU."""

    bound: float | None
    inplace: bool


# By name, what a call computes: the lower and the upper bound, and whether it is in place.
_RULES: dict[str, Callable[..., tuple[Any, Any, Any]]] = {
    "relu": lambda input, inplace=False: (0, None, inplace),
    "relu6": lambda input, inplace=False: (0, 6, inplace),
    "hardtanh": lambda input, min_val=-1, max_val=1, inplace=False: (min_val, max_val, inplace),
    "threshold": lambda input, threshold, value, inplace=False: (threshold or value, None, inplace),
    "clamp": lambda input, min=None, max=None: (min, max, False),
    "clip": lambda input, min=None, max=None: (min, max, False),
    "clamp_min": lambda input, min: (min, None, False),
}
# Names of Tensor's methods, and of functions, that may be a ReLU.
NAMES = frozenset([*_RULES, *(f"{name}_" for name in _RULES)])


def _known_functions() -> dict[Any, str]:
    places = [(getattr(place, name, None), name) for place in (functional, torch, Tensor) for name in NAMES]
    return {function: name for function, name in places if function is not None}


_FUNCTIONS = _known_functions()
_CLASSES = (nn.ReLU, nn.Hardtanh, nn.Threshold)


def forward_of(module: nn.Module) -> Any:
    """The forward of a module's class; None for TorchScript, which has none to ask, and for one set on the instance."""
    frozen = isinstance(module, torch.jit.ScriptModule) or "forward" in vars(module)
    return None if frozen else type(module).forward


def of_module(module: nn.Module) -> Activation | None:
    """What a module computes, if it is ReLU, ReLU6, Hardtanh(0, c) or Threshold(0, 0), with that class's forward."""
    forward = forward_of(module)
    if isinstance(module, nn.ReLU) and forward is nn.ReLU.forward:
        return Activation(None, module.inplace)
    if isinstance(module, nn.Hardtanh) and forward is nn.Hardtanh.forward:
        return _bounded(module.min_val, module.max_val, module.inplace)
    if isinstance(module, nn.Threshold) and forward is nn.Threshold.forward:
        return Activation(None, module.inplace) if (module.threshold, module.value) == (0, 0) else None
    return None


def of_callable(called: Any) -> Activation | None:
    """What a call with one tensor computes, of an activation module or function or a partial of one."""
    return of_module(called) if isinstance(called, nn.Module) else of_call(called, (None,), {})


def of_method(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Activation | None:
    """What a method of Tensor computes; ``x.relu(y)`` is none."""
    return of_named(name, (None, *args), kwargs) if hasattr(Tensor, name) else None


def spelled(function: Any) -> str:
    """``F.relu``, ``torch.relu``; empty for another object."""
    name = _named(function)
    return f"{'F' if getattr(functional, name, None) is function else 'torch'}.{name}" if name else ""


def of_call(called: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Activation | None:
    """What a call of a function of torch or of a partial of one computes; ``args[0]`` stands for the tensor."""
    if isinstance(called, functools.partial) and not called.args:
        called, kwargs = called.func, {**called.keywords, **kwargs}
    return of_named(_named(called), args, kwargs)


def of_named(spelling: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Activation | None:
    """What a call computes of the function, method or operator of this name."""
    try:
        low, high, inplace = _RULES[spelling.rstrip("_")](*args, **kwargs)
    except (KeyError, TypeError):  # the call would fail
        return None
    return _bounded(low, high, inplace or spelling.endswith("_")) if isinstance(inplace, bool) else None


def _named(function: Any) -> str:
    try:
        return _FUNCTIONS.get(function, "")
    except TypeError:  # not hashable
        return ""


def made_by(cls: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Activation | None:
    """What ``cls(*args, **kwargs)`` computes, if it is one of torch's activation classes."""
    try:
        return of_module(cls(*args, **kwargs)) if is_activation_class(cls) else None
    except (TypeError, ValueError, AssertionError):
        return None


def is_activation_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, _CLASSES)


def is_activation(value: Any) -> bool:
    """Whether an object computes an activation or makes a module that does."""
    return is_activation_class(value) or (callable(value) and of_callable(value) is not None)


def plain(activation: Activation) -> nn.Module:
    """A module of torch that computes an activation."""
    if activation.bound is None:
        return nn.ReLU(activation.inplace)
    bound, inplace = activation.bound, activation.inplace
    return nn.ReLU6(inplace) if bound == 6 else nn.Hardtanh(0.0, bound, inplace)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bounded(low: Any, high: Any, inplace: bool) -> Activation | None:
    if not _is_number(low) or low != 0:
        return None
    if high is None or (_is_number(high) and high == math.inf):
        return Activation(None, inplace)
    return Activation(float(high), inplace) if _is_number(high) and high > 0 else None
