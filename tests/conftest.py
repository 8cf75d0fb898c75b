"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor

import dreluop
from dreluop.autograd import fast_path
from dreluop.backends import native, triton
from tests.support.backends import (
    BACKENDS,
    REQUIRE_CUDA,
    fast_path_or_skip,
    native_cuda_or_skip,
    native_or_skip,
    operators_of,
    skip_or_fail,
)
from tests.support.devices import DEVICES, HAS_CUDA

pytest_plugins = ["tests.support.missing", "tests.support.tiers"]

# Tests that need hypothesis fail, or are skipped by `missing`, where it is not installed.
if importlib.util.find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "dreluop",
        # CI tries the same examples every time; at a desk new ones are drawn.
        derandomize="CI" in os.environ,
        # No verdict may depend on the speed of the machine.
        deadline=None,
        max_examples=100,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("dreluop")


@pytest.fixture(params=["fast_path", "python_node"])
def both_nodes(request: pytest.FixtureRequest) -> Iterator[None]:
    """The usual call by the compiled node, and by Python."""
    if request.param == "python_node":
        with fast_path.switched_off():
            yield
    else:
        fast_path_or_skip()
        yield


@pytest.fixture
def python_node() -> Iterator[None]:
    """The usual call by Python: for what is put in the place of Python's operators."""
    with fast_path.switched_off():
        yield


def _marked(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.gpu) if name.endswith("cuda") else name


@pytest.fixture(params=[_marked(name) for name in BACKENDS])
def backend(request: pytest.FixtureRequest) -> SimpleNamespace:
    if request.param == "native":
        native_or_skip()
    if request.param == "native_cuda":
        native_cuda_or_skip()
    if request.param == "triton_cuda" and (reason := triton.unavailable_reason("cuda")) is not None:
        skip_or_fail(f"Triton does not serve: {reason}", REQUIRE_CUDA)
    return operators_of(request.param)


@pytest.fixture(params=[_marked(name) for name in DEVICES])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that there is."""
    return torch.device(request.param)


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


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """torch.compile as at its first call, and without what is cached on disk of other code of ours."""
    torch.compiler.reset()
    with (
        torch._functorch.config.patch(enable_autograd_cache=False),
        torch._inductor.config.patch(fx_graph_cache=False, compile_threads=1),
    ):
        yield
    torch.compiler.reset()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        # tools/gpu/pytests.py counts those that passed.
        item.user_properties.append(("gpu", "yes"))


def pytest_configure() -> None:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        # Workers that each take every core spend their time waiting for one another.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def pytest_report_header() -> list[str]:
    served = "native" if native.is_loaded() else f"reference ({native.load_error})"
    where = os.path.dirname(dreluop.__file__)
    cuda = "tested too, see the tests named cuda" if HAS_CUDA else "NOT tested: torch sees no CUDA device"
    triton_line = triton.unavailable_reason("cpu") or "tested in its interpreter, on the CPU"
    return [
        f"Triton: {triton_line}",
        f"dreluop {dreluop.__version__} from {where}, torch {torch.__version__}",
        f"CPU tensors: {served}; CUDA tensors: {cuda}",
        f"autograd: {'compiled node and Python' if fast_path.reason is None else fast_path.reason}",
    ]


@pytest.fixture
def saved() -> Iterator[list[Tensor]]:
    """What autograd saves while the test runs."""
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        yield kept


@pytest.fixture
def process_group() -> Iterator[None]:
    """Of this process alone."""
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
