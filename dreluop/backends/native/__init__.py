"""The compiled operators: loads `_ops.abi3.so`, which adds kernels to the schemas of `dreluop.ops.schemas`."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from dreluop._internal.env import ENVIRONMENT_VARIABLE, requested
from dreluop.backends.native.cuda import CudaKernels

LIBRARY = Path(__file__).parent.parent.parent / "_ops.abi3.so"
CPU_CAPABILITY_VARIABLE = "DRELUOP_CPU_CAPABILITY"  # read by csrc/cpu/capability.h
CPU_CAPABILITIES = ("default", "avx2", "avx512")
HUGE_PAGES_VARIABLE = "DRELUOP_HUGE_PAGES"  # read by csrc/torch/huge_pages.h
HUGE_PAGES = ("auto", "never", "always")

# Why the compiled operators do not serve, in the words of whatever failed; None when they do.
load_error: str | None


def _load() -> str | None:
    wanted = requested()
    if wanted == "reference":
        return f"not loaded: {ENVIRONMENT_VARIABLE}=reference asks for the reference"
    for variable, known in ((CPU_CAPABILITY_VARIABLE, CPU_CAPABILITIES), (HUGE_PAGES_VARIABLE, HUGE_PAGES)):
        given = os.environ.get(variable, "")
        if given not in ("", *known):
            raise ValueError(f'{variable}: got "{given}"; expected one of {", ".join(known)}')
    error = _load_library()
    if error is not None and wanted == "native":
        raise ImportError(f"{ENVIRONMENT_VARIABLE}=native, but the compiled operators do not load: {error}")
    return error


def _load_library() -> str | None:
    if not LIBRARY.exists():
        return (
            f"{LIBRARY} does not exist: installed with DRELUOP_BUILD=none, or run from a source folder without a build"
        )
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        # torch wraps what the loader said.
        return str(error.__cause__ or error)
    return None


load_error = _load()
cuda_kernels = CudaKernels(LIBRARY, asked_by_name=requested() == "native") if load_error is None else None


def cuda_reason() -> str | None:
    """Why CUDA tensors are not served by the compiled kernels; None if they are. Initializes CUDA."""
    return (load_error or "not loaded") if cuda_kernels is None else cuda_kernels.reason()


def cpu_kernels() -> int:
    """The address of the table of kernels (csrc/cpu/kernel_table.h); 0 where the operators do not serve."""
    if load_error is not None:
        return 0
    kernels = ctypes.CDLL(str(LIBRARY)).dreluop_cpu_kernels
    kernels.restype = ctypes.c_void_p
    address: int = kernels()
    return address


def is_loaded() -> bool:
    """Whether CPU tensors are served by the compiled kernels."""
    return load_error is None
