"""The first thing to prove on a GPU: our statically linked CUDA runtime beside torch's streams and graphs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import dreluop
from dreluop.backends import native
from dreluop.ops import schemas
from tests.gpu.helpers import assert_all_same_bits, every_result, inputs, kernels_of, sleep
from tests.support import oracle
from tests.support.cases import FEW_CASES, Case


@pytest.mark.parametrize("name", [*schemas.SCHEMAS, *schemas.BATCH_NORM])
def test_every_operator_has_a_native_kernel(name: str) -> None:
    assert native.cuda_reason() is None
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dreluop::{name}", "CUDA")


@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_value_and_gradients(case: Case) -> None:
    x, cap, grad = inputs(case, torch.float32)
    x.requires_grad_()
    cap.requires_grad_()
    y = dreluop.capped_relu(x, cap, dim=case.dim)
    dx, dcap = torch.autograd.grad(y, (x, cap), grad)
    x, cap, grad = (t.detach().cpu() for t in (x, cap, grad))
    oracle.assert_same_bits(y.cpu(), oracle.forward(x, cap, case.dim))
    oracle.assert_same_bits(dx.cpu(), oracle.grad_x(grad, x, cap, case.dim))
    oracle.assert_grad_cap(dcap.cpu(), grad, x, cap, case.dim)


def test_forward_and_backward_are_one_kernel_each() -> None:
    x, cap, grad = inputs(Case((401, 1009), (1009,)), torch.float32)
    y = torch.ops.dreluop.capped_relu(x, cap)
    for call in (
        lambda: torch.ops.dreluop.capped_relu(x, cap),
        lambda: torch.ops.dreluop.capped_relu_backward(grad, y, cap, 1, [], True, True, None, None),
    ):
        (kernel,) = kernels_of(call)
        assert "dreluop" in kernel


def test_batch_norm_is_two_kernels_each_way() -> None:
    x, grad = (torch.randn(8, 16, 8, 8, device="cuda") for _ in range(2))
    cap = torch.tensor(1.0, device="cuda")
    _, mean, var, _ = torch.ops.dreluop.capped_batch_norm(x, cap, None, None, None, None, None, 1e-5, False)
    for call in (
        lambda: torch.ops.dreluop.capped_batch_norm(x, cap, None, None, None, None, None, 1e-5, False),
        lambda: torch.ops.dreluop.capped_batch_norm_backward(
            grad, x, cap, None, None, mean, var, None, 1e-5, True, True, False, False, True, False
        ),
    ):
        kernels = kernels_of(call)
        assert len(kernels) == 2
        assert all("batch_norm" in kernel for kernel in kernels)


def test_kernels_run_on_the_current_stream() -> None:
    x, cap, grad = inputs(Case((401, 1009), (1009,)), torch.float32)
    expected = every_result(x, cap, grad)
    late = torch.full_like(x, -1)
    torch.cuda.synchronize()
    # Streams of torch do not wait for the default stream: a kernel there would see x before it is written.
    with torch.cuda.stream(torch.cuda.Stream()):
        sleep()
        late.copy_(x)
        results = every_result(late, cap, grad)
        torch.cuda.current_stream().synchronize()
    assert_all_same_bits(results, expected)


@pytest.mark.parametrize("other_stream", [False, True], ids=["same_stream", "other_stream"])
def test_a_captured_graph_is_replayed(other_stream: bool) -> None:
    case = Case((401, 1009), (1009,))
    x, cap, grad = inputs(case, torch.float32)
    fresh = torch.randn_like(x)
    expected = every_result(fresh, cap, grad)
    every_result(x, cap, grad)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = every_result(x, cap, grad)
    stream = torch.cuda.Stream() if other_stream else torch.cuda.current_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            sleep()
            x.copy_(fresh)
            graph.replay()
        stream.synchronize()
    assert_all_same_bits(results, expected)


def test_the_overview_finds_no_mismatch() -> None:
    done = subprocess.run([sys.executable, "-m", "dreluop"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MISMATCH" not in done.stdout
