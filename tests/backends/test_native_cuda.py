"""When the compiled CUDA kernels come to serve: never at import, then only if every GPU can run them."""

from __future__ import annotations

import pytest
import torch

from dreluop.backends import native
from dreluop.backends.native import cuda
from dreluop.ops.schemas import SCHEMAS
from tests.support import fresh_python
from tests.support.backends import native_or_skip

pytestmark = pytest.mark.slow


@pytest.fixture
def built_for_cuda() -> cuda.CudaKernels:
    native_or_skip()
    if native.cuda_kernels is None or not native.cuda_kernels.built:
        pytest.skip("built without CUDA")
    return native.cuda_kernels


def run(code: str) -> str:
    done = fresh_python.run(code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HAS_KERNELS = """
def has_kernels():
    names = dreluop.ops.schemas.SCHEMAS
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [has(f"dreluop::{name}", "CUDA") for name in names]
"""


def test_import_neither_starts_cuda_nor_registers(built_for_cuda: cuda.CudaKernels) -> None:
    code = f"import torch, dreluop\n{HAS_KERNELS}\nprint(torch.cuda.is_initialized(), any(has_kernels()))"
    assert run(code) == "False False"


def test_every_operator_is_registered_where_the_gpus_can(built_for_cuda: cuda.CudaKernels) -> None:
    code = f"""
import torch, dreluop
from dreluop.backends import native
{HAS_KERNELS}
native.cuda_kernels._unavailable = lambda: None
native.cuda_kernels.register()
native.cuda_kernels.register()
print(all(has_kernels()), native.cuda_kernels.reason())
"""
    assert run(code) == "True None"


@pytest.mark.parametrize("asked_by_name", [False, True])
def test_a_gpu_that_cannot_leaves_the_reference_or_an_error(
    built_for_cuda: cuda.CudaKernels, asked_by_name: bool
) -> None:
    code = f"""
import torch, dreluop
from dreluop.backends import native
{HAS_KERNELS}
kernels = native.cuda_kernels
kernels._asked_by_name = {asked_by_name}
kernels._unavailable = lambda: "device 0: no kernel image"
kernels.register()
kernels.register()
print(any(has_kernels()), kernels.reason())
"""
    assert run(code) == f"{asked_by_name} device 0: no kernel image"


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_error_of_a_backend_asked_for_by_name(name: str) -> None:
    refuse = cuda._refusal(name, "the driver is too old")
    with pytest.raises(RuntimeError, match=f"dreluop::{name}: DRELUOP_BACKEND=native.*: the driver is too old"):
        refuse(torch.ones(2), 1, bias=None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_reason_without_a_gpu(built_for_cuda: cuda.CudaKernels) -> None:
    expected = "torch sees no CUDA device" if torch.version.cuda else "this torch is not built for CUDA"
    assert native.cuda_reason() == expected
    assert not torch.cuda.is_initialized()


def test_built_for_names_version_and_architectures(built_for_cuda: cuda.CudaKernels) -> None:
    text = built_for_cuda.built_for()
    assert text is not None
    version, archs = text.removeprefix("CUDA ").split(" for ")
    assert tuple(map(int, version.split("."))) >= (12, 1)
    assert all(arch.removesuffix("+PTX").isdigit() for arch in archs.split(";"))


def test_an_error_while_registering_is_a_reason_not_the_end_of_cuda(built_for_cuda: cuda.CudaKernels) -> None:
    code = """
from dreluop.backends import native
def fails():
    raise OSError("driver gone")
native.cuda_kernels._unavailable = fails
native.cuda_kernels.register()
print(native.cuda_kernels.reason())
"""
    assert run(code) == "OSError: driver gone"


def test_which_gpus_can_run_the_build(built_for_cuda: cuda.CudaKernels) -> None:
    if "80;90;100+PTX" not in (built_for_cuda.built_for() or ""):
        pytest.skip("built for other architectures than the default ones")
    # 8.6 and 8.9 run code of 8.0, 12.0 compiles the PTX of 8.0; nothing is there for what is older.
    for capability in (80, 86, 89, 90, 100, 103, 120):
        assert built_for_cuda.unsupported_capability(capability) == "", capability
    for capability in (61, 70, 75):
        reason = built_for_cuda.unsupported_capability(capability)
        assert reason.endswith(f"{capability // 10}.{capability % 10} is not among those built for, 80;90;100+PTX")
