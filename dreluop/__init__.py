"""Fused capped activations for PyTorch: D-ReLU (a learnable cap) and S-ReLU (a fixed one)."""

import importlib
from typing import Any

from dreluop import _register  # noqa: F401  # isort: skip
from dreluop import adaptive, distributed, ops
from dreluop.autograd.function import CappedReLUFunction
from dreluop.backends.selection import available_backends, compile_mode, use_backend
from dreluop.batch_norm import BatchNormDReLU1d, BatchNormDReLU2d, BatchNormDReLU3d, capped_batch_norm
from dreluop.caps.optim import param_groups, project_caps, project_caps_after_step
from dreluop.functional import Saturation, cap_penalty, capped_relu, saturation
from dreluop.modules import DReLU, LazyDReLU, SReLU
from dreluop.version import __version__

__all__ = [
    "BatchNormDReLU1d",
    "BatchNormDReLU2d",
    "BatchNormDReLU3d",
    "CappedReLUFunction",
    "DReLU",
    "LazyDReLU",
    "SReLU",
    "Saturation",
    "__version__",
    "adaptive",
    "available_backends",
    "cap_penalty",
    "capped_batch_norm",
    "capped_relu",
    "compile_mode",
    "ops",
    "param_groups",
    "project_caps",
    "project_caps_after_step",
    "saturation",
    "use_backend",
]

# Imported when they are first asked for, as they take time and few need them.
_LATER = frozenset({"diagnostics", "faults", "onnx", "surgery"})


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"dreluop.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


distributed.install()
