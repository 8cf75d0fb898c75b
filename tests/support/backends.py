"""The backends that this process can test, and a skip with its reason, or a failure, where one is not there."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import dreluop
from dreluop.autograd import fast_path
from dreluop.backends import native, reference, selection, triton
from dreluop.ops import schemas
from tests.backends.triton.interpreter import make_quick
from tests.support.devices import HAS_CUDA, on_device

REQUIRE_NATIVE = "DRELUOP_REQUIRE_NATIVE"
# A library whose operators serve CPU tensors in place of the compiled ones: the CUDA operators on the host shim.
TEST_OPERATORS = "DRELUOP_TEST_OPERATORS"
if os.environ.get(TEST_OPERATORS):
    assert native.load_error is not None, f"{TEST_OPERATORS} needs DRELUOP_BACKEND=reference"
    torch.ops.load_library(os.environ[TEST_OPERATORS])
    ctypes.CDLL(os.environ[TEST_OPERATORS]).dreluop_register_cuda()
    native.load_error = None
    dreluop.use_backend(None)
REQUIRE_CUDA = "DRELUOP_REQUIRE_CUDA"
# Triton's kernels run in its interpreter, on CPU tensors, in a process that asks for it from the start.
INTERPRETED = triton.unavailable_reason("cpu") is None
if INTERPRETED:
    make_quick()
BACKENDS = (
    "native",
    "reference",
    *(("triton",) if INTERPRETED else ()),
    *(("native_cuda", "triton_cuda", "reference_cuda") if HAS_CUDA else ()),
)


def skip_or_fail(reason: str, required_by: str) -> None:
    if os.environ.get(required_by) == "1":
        pytest.fail(f"{reason} ({required_by}=1)")
    pytest.skip(reason)


def native_or_skip() -> None:
    """Skip with the real load error; fail instead where the environment says that the native part must be there."""
    if not native.is_loaded():
        skip_or_fail(f"the native operators are not loaded: {native.load_error}", REQUIRE_NATIVE)


def native_cuda_or_skip() -> None:
    """Skip, saying why, where the native CUDA kernels do not serve; fail instead where they must."""
    if not HAS_CUDA:
        skip_or_fail("needs a CUDA device, and torch sees none", REQUIRE_CUDA)
    reason = native.cuda_reason()
    if reason is not None:
        skip_or_fail(f"the native CUDA kernels do not serve: {reason}", REQUIRE_CUDA)


def fast_path_or_skip() -> None:
    """Skip, saying why, where the compiled node does not serve; DRELUOP_AUTOGRAD=compiled refuses to import then."""
    if fast_path.reason is not None:
        pytest.skip(f"no compiled node: {fast_path.reason}")


def operators_of(name: str) -> SimpleNamespace:
    """The operators by name, called with CPU tensors.

    ``native`` and ``triton`` are what the dispatcher calls, ``reference`` are the functions of the reference; ending in
    ``_cuda``, they run on copies of their arguments on the GPU.
    """
    operators: dict[str, Callable[..., Any]] = {}
    backend = name.removesuffix("_cuda")
    for operator in schemas.SCHEMAS:
        dispatched = getattr(selection.operators_of(backend), operator)
        function = getattr(reference, operator) if backend == "reference" else dispatched
        operators[operator] = on_device(function, torch.device("cuda")) if name.endswith("_cuda") else function
    return SimpleNamespace(name=name, **operators)


def storages(*tensors: Tensor) -> dict[int, int]:
    """Address and size in bytes of each storage."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}
