"""Fixtures shared by all tests."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor

import dreluop
from dreluop.autograd import fast_path
from dreluop.backends import native, reference, selection, triton
from dreluop.ops import schemas
from tests.backends.triton.interpreter import make_quick
from tests.support.devices import DEVICES, HAS_CUDA, on_device
from tests.support.missing import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401 (pytest finds them here)

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

SAMPLE = "DRELUOP_TEST_SAMPLE"
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


def _skip_or_fail(reason: str, required_by: str) -> None:
    if os.environ.get(required_by) == "1":
        pytest.fail(f"{reason} ({required_by}=1)")
    pytest.skip(reason)


def native_or_skip() -> None:
    """Skip with the real load error; fail instead where the environment says that the native part must be there."""
    if not native.is_loaded():
        _skip_or_fail(f"the native operators are not loaded: {native.load_error}", REQUIRE_NATIVE)


def native_cuda_or_skip() -> None:
    """Skip, saying why, where the native CUDA kernels do not serve; fail instead where they must."""
    if not HAS_CUDA:
        _skip_or_fail("needs a CUDA device, and torch sees none", REQUIRE_CUDA)
    reason = native.cuda_reason()
    if reason is not None:
        _skip_or_fail(f"the native CUDA kernels do not serve: {reason}", REQUIRE_CUDA)


def fast_path_or_skip() -> None:
    """Skip, saying why, where the compiled node does not serve; DRELUOP_AUTOGRAD=compiled refuses to import then."""
    if fast_path.reason is not None:
        pytest.skip(f"no compiled node: {fast_path.reason}")


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


def _marked(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.gpu) if name.endswith("cuda") else name


@pytest.fixture(params=[_marked(name) for name in BACKENDS])
def backend(request: pytest.FixtureRequest) -> SimpleNamespace:
    if request.param == "native":
        native_or_skip()
    if request.param == "native_cuda":
        native_cuda_or_skip()
    if request.param == "triton_cuda" and (reason := triton.unavailable_reason("cuda")) is not None:
        _skip_or_fail(f"Triton does not serve: {reason}", REQUIRE_CUDA)
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With DRELUOP_TEST_SAMPLE=n, run only every n-th Triton test: each takes about a second in the interpreter."""
    step = int(os.environ.get(SAMPLE, "1"))
    if step > 1:
        by_triton = [item for item in items if "triton" in item.nodeid.partition("[")[2]]
        left_out = {id(item) for index, item in enumerate(by_triton) if index % step}
        config.hook.pytest_deselected(items=[item for item in items if id(item) in left_out])
        items[:] = [item for item in items if id(item) not in left_out]


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


def storages(*tensors: Tensor) -> dict[int, int]:
    """Address and size in bytes of each storage."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}


@pytest.fixture
def process_group() -> Iterator[None]:
    """Of this process alone."""
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
