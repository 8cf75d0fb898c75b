"""The operators as hand-written Triton kernels. Importing this imports neither triton nor its kernels.

``functions()`` gives an implementation of every operator of ``dreluop.ops.schemas``; ``unavailable_reason`` says where
they cannot serve; ``tune()`` measures launch parameters on the user's GPU, only when called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch

from dreluop.backends.triton.plan import Tuning

__all__ = ["Tuning", "functions", "tune", "unavailable_reason"]

INTERPRETER_VARIABLE = "TRITON_INTERPRET"  # read by triton when kernels are defined
DEVICE_TYPES = ("cuda", "xpu")


def unavailable_reason(device_type: str) -> str | None:
    """Why Triton cannot serve tensors of a type of device; None if it can. For ``"cpu"`` no driver is asked."""
    if device_type not in ("cpu", *DEVICE_TYPES):
        return f'Triton kernels serve {" and ".join(DEVICE_TYPES)} tensors, not "{device_type}"'
    interpreted = _is_interpreted()
    if device_type == "cpu" and not interpreted:
        return f"Triton has no CPU kernels; {INTERPRETER_VARIABLE}=1, set before triton is imported, interprets them"
    error = _import_error()
    if error is not None:
        return error
    if device_type == "cpu":
        return None
    if interpreted:
        return f"{INTERPRETER_VARIABLE}=1: the kernels are interpreted, on CPU tensors"
    return _device_reason(device_type)


def _is_interpreted() -> bool:
    kernels = sys.modules.get(f"{__name__}.kernels.elements")
    if kernels is not None:
        return bool(kernels.INTERPRETED.value)
    return os.environ.get(INTERPRETER_VARIABLE, "").lower() in ("1", "true", "on", "yes", "y")


@cache
def _import_error() -> str | None:
    """What importing triton says where it fails."""
    try:
        import triton  # noqa: PLC0415
        import triton.language  # noqa: PLC0415
    except Exception as error:  # a broken installation may raise anything
        return f"triton cannot be imported: {type(error).__name__}: {error}"
    if not hasattr(triton, "knobs"):
        return f"triton {triton.__version__} is too old: the kernels need triton.knobs, of 3.4 and newer"
    return None


def _device_reason(device_type: str) -> str | None:
    if device_type == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        return "this torch is not built for CUDA or ROCm"
    module = getattr(torch, device_type)
    if not module.is_available():
        return f"torch sees no {device_type.upper()} device"
    if device_type == "cuda" and torch.version.hip is None:
        old = [major for major, _ in map(module.get_device_capability, range(module.device_count())) if major < 8]
        if len(old) == module.device_count():
            return f"Triton needs compute capability 8.0; the devices have {max(old)}.x"
    if device_type == "xpu" and not getattr(module.get_device_properties(), "has_fp64", True):
        return "the sums need fp64, which this device does not have"
    return None


@cache
def functions() -> Mapping[str, Callable[..., Any]]:
    """A function per operator, with the arguments, results and errors of `dreluop.backends.reference`.

    Raises:
        ImportError: where triton cannot be imported, with what it said.
    """
    error = _import_error()
    if error is not None:
        raise ImportError(error)
    from dreluop.backends.triton import backward, forward, jvp, penalty, saturation, surrogate  # noqa: PLC0415

    found = (
        forward.capped_relu,
        forward.capped_relu_,
        forward.capped_relu_with_aux,
        forward.capped_relu_with_aux_,
        backward.capped_relu_backward,
        jvp.capped_relu_jvp,
        surrogate.capped_relu_surrogate_backward,
        saturation.cap_saturation,
        penalty.cap_penalty,
        penalty.cap_penalty_backward,
    )
    return MappingProxyType({function.__name__: function for function in found})


def tune(
    device: torch.device | str = "cuda",
    *,
    measure: Callable[[Callable[[], object]], float] | None = None,
    mebibytes: int = 128,
) -> Tuning:
    """Measure launch parameters on this device, use them from now on, and keep them for later processes.

    They go to ``$XDG_CACHE_HOME/dreluop/triton-<device>-<versions>.json`` (``~/.cache`` where that is not set). Takes
    minutes, and about four times ``mebibytes`` of the GPU's memory; nothing is ever measured without this call.

    Args:
        device: the GPU; ``"cuda"`` is the current one.
        measure: milliseconds of a call; by default timed on the device, the median of 20.
        mebibytes: size of the tensors that are measured, fp32 and bf16.

    Raises:
        RuntimeError: where Triton cannot serve the device, with the reason, and on the CPU without a ``measure``.
    """
    from dreluop.backends.triton import tuning  # noqa: PLC0415

    return tuning.tune(device, measure=measure, mebibytes=mebibytes)
