"""Counts ReLUs as the dispatcher sees them: without the report, and without the code that made it."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dreluop import DReLU, SReLU
from dreluop.surgery.compiling import original_line

# With the separator, as the paths of other packages begin like torch's.
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"


def _low_is_zero(arguments: Mapping[str, Any]) -> bool:
    return next((arguments[name] for name in ("min_val", "min") if name in arguments), None) == 0


# Which calls of an operator are a ReLU, by its name without the "_" of in-place ones.
_KINDS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "relu": lambda _: True,
    "relu6": lambda _: True,
    "hardtanh": _low_is_zero,
    "clamp_min": _low_is_zero,
    # With a maximum it cuts boxes and images to size; ReLU6 is a hardtanh.
    "clamp": lambda arguments: _low_is_zero(arguments) and arguments.get("max") is None,
    "threshold": lambda arguments: arguments["threshold"] == arguments["value"] == 0,
    "_addmm_activation": lambda arguments: not arguments.get("use_gelu", False),
    "_transformer_encoder_layer_fwd": lambda arguments: not arguments["use_gelu"],
}


class ReluCounter(TorchDispatchMode):
    """While active, counts each ReLU of floating-point numbers that is made outside of the modules of dreluop.

    Attributes:
        calls: how many, by operator, innermost module, file and line.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        kind = _KINDS.get(name.removesuffix("_")) if func.namespace == "aten" else None
        if kind is not None and isinstance(args[0], Tensor) and args[0].is_floating_point():
            names = (argument.name for argument in func._schema.arguments)
            if kind({**dict(zip(names, args, strict=False)), **kwargs}):
                self._note(name, sys._getframe(1))
        return func(*args, **kwargs)

    def _note(self, name: str, frame: FrameType | None) -> None:
        module, line = "", ""
        while frame is not None:
            caller = frame.f_locals.get("self")
            if isinstance(caller, DReLU | SReLU):
                return
            if isinstance(caller, nn.Module) and not module:
                module = type(caller).__name__
            if not line and not frame.f_code.co_filename.startswith(_TORCH):
                line = original_line(frame.f_code.co_filename, frame.f_lineno)
            frame = frame.f_back
        self.calls[f"{name} in {module}, {line}"] += 1
