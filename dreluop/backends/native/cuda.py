"""The CUDA kernels of the compiled operators. They serve from torch's first use of CUDA on, if a GPU can run them.

Not from the import on: asking the driver there would break processes that fork before they use CUDA.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, NoReturn

import torch

from dreluop._internal import torch_private
from dreluop.ops.schemas import SCHEMAS, library


class CudaKernels:
    """The CUDA part of a loaded library."""

    def __init__(self, path: Path, *, asked_by_name: bool) -> None:
        """Have torch register the kernels when it initializes CUDA.

        ``asked_by_name``: where they cannot serve, CUDA tensors are an error, not left to the reference.
        """
        self._asked_by_name = asked_by_name
        self._reason: str | None = "built without CUDA"
        self._asked = True
        self._library = ctypes.CDLL(str(path))
        self.built = hasattr(self._library, "dreluop_register_cuda")
        if self.built:
            self._library.dreluop_cuda_archs.restype = ctypes.c_char_p
            self._library.dreluop_cuda_unavailable_reason.restype = ctypes.c_char_p
            self._library.dreluop_cuda_unsupported_capability.restype = ctypes.c_char_p
            self._asked = False
            torch_private.call_when_initialized("cuda", self.register)
        elif asked_by_name:
            self._refuse()

    def built_for(self) -> str | None:
        """The CUDA version of the build and its architectures; None without CUDA code."""
        if not self.built:
            return None
        version = self._library.dreluop_cuda_version()
        return f"CUDA {version // 1000}.{version % 1000 // 10} for {self._library.dreluop_cuda_archs().decode()}"

    def reason(self) -> str | None:
        """Why CUDA tensors are not served by these kernels; None if they are. Initializes CUDA."""
        if not self._asked:
            if torch.version.cuda is None:
                return "this torch is not built for CUDA"
            if not torch.cuda.is_available():
                return "torch sees no CUDA device"
            torch.cuda.init()
        return self._reason

    def register(self) -> None:
        """Make the kernels serve CUDA tensors, if a visible GPU can run them; one that cannot is then an error."""
        if self._asked:
            return
        self._asked = True
        try:
            self._reason = self._unavailable()
            if self._reason is None:
                self._library.dreluop_register_cuda()
            elif self._asked_by_name:
                self._refuse()
        except Exception as error:
            self._reason = f"{type(error).__name__}: {error}"

    def unsupported_capability(self, capability: int) -> str:
        """Why a compute capability (90 is 9.0) cannot run the code of this build; empty if it can."""
        text: str = self._library.dreluop_cuda_unsupported_capability(capability).decode()
        return text

    def _refuse(self) -> None:
        for name in SCHEMAS:
            library.impl(name, _refusal(name, self._reason or ""), "CUDA")

    def _unavailable(self) -> str | None:
        if torch.version.cuda is None:
            return "this torch is not built for CUDA"
        reasons = []
        for device in range(torch.cuda.device_count()):
            why = self._library.dreluop_cuda_unavailable_reason(device).decode()
            if not why:
                return None
            reasons.append(f"device {device}: {why}")
        return "; ".join(reasons) or "torch sees no CUDA device"


def _refusal(name: str, why: str) -> Any:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(f"dreluop::{name}: DRELUOP_BACKEND=native, but its CUDA kernels cannot serve: {why}")

    return refuse
