"""The caps that a user gives: a tensor, several, or those of a module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from dreluop._internal import checks
from dreluop._internal.cap_state import LearnedCap


def caps_of(caps: Tensor | Iterable[Tensor] | nn.Module) -> list[Tensor]:
    """The caps that a tensor, several, or the DReLUs of a module are; those of a module each once.

    Raises:
        TypeError: caps holds something that is no float tensor.
        ValueError: there is none, or one is that of a LazyDReLU without a shape yet.
    """
    tensors = tensors_of(caps)
    check_caps(tensors)
    return tensors


def check_caps(tensors: list[Tensor]) -> None:
    for index, cap in enumerate(tensors):
        if isinstance(cap, UninitializedParameter):
            raise ValueError(f"caps[{index}]: got the cap of a LazyDReLU without a shape; run the module once before")
        checks.float_tensor(f"caps[{index}]", cap)


def check_devices(tensors: list[Tensor]) -> None:
    for index, cap in enumerate(tensors[1:], 1):
        if cap.device != tensors[0].device:
            raise ValueError(
                f"caps[{index}]: got a tensor on {cap.device}; expected the device of caps[0], {tensors[0].device}"
            )


def modules_of(model: nn.Module) -> Iterator[nn.Module]:
    """``model.modules()``, in a third of its time."""
    if torch.compiler.is_compiling():
        yield from model.modules()
        return
    seen: set[nn.Module] = set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            yield module
            if children := module._modules:
                waiting += [child for child in reversed(children.values()) if child is not None]


def tensors_of(caps: Tensor | Iterable[Tensor] | nn.Module) -> list[Tensor]:
    if isinstance(caps, Tensor):
        return [caps]
    if isinstance(caps, nn.Module) and not isinstance(caps, nn.ParameterList | nn.ParameterDict):
        found = [m.trained for m in modules_of(caps) if isinstance(m, LearnedCap)]
        if not found:
            raise ValueError(f"caps: got a {type(caps).__name__} without any DReLU; expected at least one")
        return list({id(cap): cap for cap in found}.values())
    if not isinstance(caps, Iterable):
        raise TypeError(f"caps: got {type(caps).__name__}; expected a tensor, tensors or a module")
    tensors = list(caps.values() if isinstance(caps, Mapping | nn.ParameterDict) else caps)
    if not tensors:
        raise ValueError("caps: got no tensor; expected at least one")
    return tensors
