"""The one place where kernels are launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def launch(kernel: Any, programs: int, device: torch.device, *arguments: Any, warps: int = 4, **constants: Any) -> None:
    """Run `programs` programs of a kernel on `device`, on its current stream."""
    if programs > 0:
        with _current(device):
            kernel[(programs,)](*arguments, num_warps=warps, **constants)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    # Triton launches on the current device, whatever the device of the tensors is.
    if device.type == "cpu":
        return nullcontext()
    module = torch.get_device_module(device)
    context: AbstractContextManager[Any] = module.device(device)
    return context
