"""The CUDA operators without a GPU: their binding and their kernels, compiled for the host, serve CPU tensors.

csrc/torch/ops_cuda.cpp and csrc/cuda/*.cu are compiled as they are; tests/csrc/cuda_host stands in for CUDA itself. The
operator tests run on them in a process of their own, as do the tests of what a failed launch does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.build.conftest import Cpp
from tests.support.own_pytest import ROOT, passed_in_own_process


@pytest.fixture(scope="module")
def library(cpp: Cpp) -> Path:
    return cpp.make("cuda_operators_on_cpu", "libcuda_operators_on_cpu.so")


def environment(library: Path) -> dict[str, str]:
    return {"DRELUOP_BACKEND": "reference", "DRELUOP_TEST_OPERATORS": str(library)}


def test_operators_agree_with_the_oracle(library: Path, request: pytest.FixtureRequest) -> None:
    # opcheck and the instruction sets of the CPU are no business of these kernels.
    chosen = "native and not opcheck and not capability"
    passed = passed_in_own_process(request.config, "tests/ops", "-k", chosen, **environment(library))
    assert passed > {"full": 4000}.get(request.config.option.tier, 1800)


def test_batch_norm_agrees_with_its_reference(library: Path, request: pytest.FixtureRequest) -> None:
    files = ("tests/ops/test_batch_norm.py", "tests/autograd/test_batch_norm.py")
    assert passed_in_own_process(request.config, *files, "-k", "not opcheck", **environment(library)) > 150


def test_in_place_and_its_derivatives(library: Path, request: pytest.FixtureRequest) -> None:
    assert passed_in_own_process(request.config, "tests/autograd/test_inplace.py", **environment(library)) > 100


FAILED_LAUNCHES = """
import ctypes, os, torch
import tests.support.backends
shim = ctypes.CDLL(os.environ["DRELUOP_TEST_OPERATORS"])
ops = torch.ops.dreluop
x, cap, bias = torch.randn(400, 300), torch.rand(300) + 0.5, torch.randn(300)
y, mask, _ = ops.capped_relu_with_aux(x, cap, 1, True, None)
one = torch.ones(())
calls = {
    "forward": lambda: ops.capped_relu(x, cap, 1),
    "forward ": lambda: ops.capped_relu_(x, cap, 1),
    "forward  ": lambda: ops.capped_relu_with_aux(x, cap, 1, True, 0.5, bias, x.clone()),
    "forward   ": lambda: ops.capped_relu_with_aux_(x, cap, 1, True, 0.5),
    "backward": lambda: ops.capped_relu_backward(x, y, cap, 1, [], True, True, 0.5, one, bias),
    "jvp": lambda: ops.capped_relu_jvp(x, cap, mask, cap, 1, [0, 1]),
    "surrogate": lambda: ops.capped_relu_surrogate_backward(x, mask, cap, 1, [0, 1], None),
    "surrogate ": lambda: ops.capped_relu_surrogate_backward(x, x, cap, 1, [], cap),
    "saturation": lambda: ops.cap_saturation(x, cap),
    "penalty": lambda: ops.cap_penalty([cap, bias], 0.5),
    "penalty backward": lambda: ops.cap_penalty_backward(one, [cap, bias], 0.5),
}
images, caps = torch.randn(4, 5, 8, 8), torch.rand(5) + 0.5
_, mean, var, mask_of_images = ops.capped_batch_norm(images, caps, None, None, None, None, images, 1e-5, True)
calls |= {
    "batch norm": lambda: ops.capped_batch_norm(images, caps, None, None, mean, var, None, 1e-5, False),
    "batch norm ": lambda: ops.capped_batch_norm(images, caps, None, None, None, None, images, 1e-5, True),
    "batch norm backward": lambda: ops.capped_batch_norm_backward(
        images, images, caps, None, None, mean, var, mask_of_images, 1e-5, True, *[True] * 5),
    "batch norm backward ": lambda: ops.capped_batch_norm_backward(
        images, images, caps, None, None, mean, var, None, 1e-5, False, True, *[False] * 4),
}
launches = {"batch norm ": 2, "batch norm backward": 2}
for name, call in calls.items():
    before = shim.host_cuda_launches()
    call()
    expected = launches.get(name, 1)
    assert shim.host_cuda_launches() == before + expected, f"{name}: not {expected} launches"
    for after in range(expected):
        result = None
        shim.host_cuda_fail_launch(719, after)
        try:
            result = call()
        except RuntimeError as error:
            assert f"dreluop {name.strip()}" in str(error), error
            assert "719" in str(error), error
        else:
            raise AssertionError(f"{name}: a failed launch went unnoticed")
        assert result is None
        call()
shim.host_cuda_fail_memset(2)
try:
    ops.capped_relu_backward(x, y, cap, 1, [], True, True, None, None)
except RuntimeError as error:
    assert "cudaMemsetAsync" in str(error) and "error 2" in str(error), error
else:
    raise AssertionError("a failed memset went unnoticed")
leaf = x.clone().requires_grad_()
import dreluop
out = dreluop.capped_relu(leaf, cap)
shim.host_cuda_fail_launch(719, 0)
try:
    out.sum().backward()
except RuntimeError as error:
    assert "dreluop backward" in str(error), error
else:
    raise AssertionError("a failed launch in backward went unnoticed")
assert leaf.grad is None
from dreluop.autograd import fast_path
if fast_path.reason is None:
    # Where memory was missing, the node asks for torch's exception.
    from dreluop import _autograd
    def as_of_torch(error):
        assert type(error) is RuntimeError, error
        raise torch.OutOfMemoryError(str(error))
    _autograd.set_python(fast_path.backward_in_python, as_of_torch)
    out = dreluop.capped_relu(leaf, cap)
    shim.host_cuda_fail_launch(719, 0)
    try:
        out.sum().backward()
    except torch.OutOfMemoryError as error:
        assert "dreluop backward" in str(error), error
    else:
        raise AssertionError("memory that was missing in backward went unnoticed")
print("ok")
"""


def test_every_operator_has_its_launches_and_a_failed_one_raises(library: Path) -> None:
    own = os.environ | environment(library) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FAILED_LAUNCHES]
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ok", done.stdout + done.stderr
