"""The CUDA kernels of the compiled operators. They serve from torch's first use of CUDA on, if every card can run them.

Not from the import on: asking the driver there would break processes that fork before they use CUDA.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, NoReturn

import torch

from dreluop.ops.schemas import SCHEMAS, library

_NOT_ASKED = "torch has not used CUDA yet"

_compiled: ctypes.CDLL | None = None
_asked_by_name = False
_reason: str | None = "the compiled operators are not loaded"


def register_at_first_use(path: Path, *, asked_by_name: bool) -> None:
    """Have torch register the CUDA kernels of a loaded library when it initialises CUDA.

    ``asked_by_name``: where they cannot serve, CUDA tensors are an error, not left to the reference.
    """
    global _compiled, _asked_by_name, _reason
    _compiled, _asked_by_name = ctypes.CDLL(str(path)), asked_by_name
    if not hasattr(_compiled, "dreluop_register_cuda"):
        _reason = "built without CUDA"
        return
    _compiled.dreluop_cuda_archs.restype = ctypes.c_char_p
    _compiled.dreluop_cuda_unavailable_reason.restype = ctypes.c_char_p
    _reason = _NOT_ASKED
    torch.cuda._lazy_call(_register)


def built_for() -> tuple[str, str] | None:
    """The CUDA version of the build and its architectures; None without CUDA code."""
    if _compiled is None or not hasattr(_compiled, "dreluop_register_cuda"):
        return None
    version = _compiled.dreluop_cuda_version()
    return f"{version // 1000}.{version % 1000 // 10}", _compiled.dreluop_cuda_archs().decode()


def reason() -> str | None:
    """Why CUDA tensors are not served by the compiled kernels; None if they are. Initialises CUDA."""
    if _reason == _NOT_ASKED:
        if not torch.cuda.is_available():
            return "torch sees no CUDA device" if torch.version.cuda else "this torch is built without CUDA"
        torch.cuda.init()
    return _reason


def _register() -> None:
    global _reason
    _reason = _unavailable()
    assert _compiled is not None
    if _reason is None:
        _compiled.dreluop_register_cuda()
    elif _asked_by_name:
        for name in SCHEMAS:
            library.impl(name, _refusal(name, _reason), "CUDA")


def _unavailable() -> str | None:
    assert _compiled is not None
    if torch.version.cuda is None:
        return "this torch is not built for CUDA"
    for device in range(torch.cuda.device_count()):
        why = _compiled.dreluop_cuda_unavailable_reason(device).decode()
        if why:
            return f"{torch.cuda.get_device_name(device)} (device {device}): {why}"
    return None


def _refusal(name: str, why: str) -> Any:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(
            f"dreluop::{name}: DRELUOP_BACKEND=native, but the compiled CUDA kernels cannot serve: {why}"
        )

    return refuse
