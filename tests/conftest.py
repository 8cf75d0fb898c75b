"""Fixtures shared by all tests."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dreluop
from dreluop.ops import native, reference, schemas

REQUIRE_NATIVE = "DRELUOP_REQUIRE_NATIVE"
# A library whose operators serve CPU tensors in place of the compiled ones: the CUDA operators on the host shim.
TEST_OPERATORS = "DRELUOP_TEST_OPERATORS"
if os.environ.get(TEST_OPERATORS):
    assert native.load_error is not None, f"{TEST_OPERATORS} needs DRELUOP_BACKEND=reference"
    torch.ops.load_library(os.environ[TEST_OPERATORS])
    ctypes.CDLL(os.environ[TEST_OPERATORS]).dreluop_register_cuda()
    native.load_error = None


def native_or_skip() -> None:
    """Skip with the real load error; fail instead where the environment says that the native part must be there."""
    if native.is_loaded():
        return
    reason = f"the native operators are not loaded: {native.load_error}"
    if os.environ.get(REQUIRE_NATIVE) == "1":
        pytest.fail(f"{reason} ({REQUIRE_NATIVE}=1)")
    pytest.skip(reason)


def operators_of(name: str) -> SimpleNamespace:
    """The operators by name: the functions of the reference, or what the dispatcher calls on CPU tensors."""
    operators: dict[str, Callable[..., Any]] = {}
    for operator in schemas.SCHEMAS:
        dispatched = getattr(getattr(torch.ops, schemas.NAMESPACE), operator).default
        operators[operator] = getattr(reference, operator) if name == "reference" else dispatched
    return SimpleNamespace(name=name, **operators)


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest) -> SimpleNamespace:
    if request.param == "native":
        native_or_skip()
    return operators_of(request.param)


@pytest.fixture
def native_backend() -> SimpleNamespace:
    native_or_skip()
    return operators_of("native")


@pytest.fixture
def threads():
    """Sets the number of threads, and puts the old one back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def pytest_configure() -> None:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        # Workers that each take every core spend their time waiting for one another.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def pytest_report_header() -> list[str]:
    served = "native" if native.is_loaded() else f"reference ({native.load_error})"
    where = os.path.dirname(dreluop.__file__)
    return [f"dreluop {dreluop.__version__} from {where}, torch {torch.__version__}", f"CPU tensors: {served}"]
