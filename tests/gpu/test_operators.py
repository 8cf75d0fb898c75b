"""What holds on a GPU beyond the tests of the operators, which run there as ``native_cuda``: the same bits as on the
CPU and on every run, deterministic by torch's rules, and no memory beyond what is promised."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import dreluop
from tests.gpu.helpers import TRAVERSALS, assert_all_same_bits, every_result, inputs
from tests.ops.test_accumulation import LARGE
from tests.support import oracle
from tests.support.cases import DTYPES, FEW_CASES, Case, dtype_id

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
by_traversal = pytest.mark.parametrize("case", TRAVERSALS, ids=str)


@by_dtype
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_values_over_many_blocks(case: Case, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    grad = case.grad(dtype)
    there, cap_there, grad_there = (t.cuda() for t in (x, cap, grad))
    y, mask, _ = torch.ops.dreluop.capped_relu_with_aux(there, cap_there, case.dim, True, None)
    expected = oracle.forward(x, cap, case.dim)
    oracle.assert_same_bits(y.cpu(), expected)
    for saved, order in ((y, []), (mask, oracle.mask_order(y, cap_there))):
        dx, dcap, _ = torch.ops.dreluop.capped_relu_backward(
            grad_there, saved, cap_there, case.dim, order, True, True, None, None
        )
        oracle.assert_same_bits(dx.cpu(), oracle.grad_x(grad, x, cap, case.dim))
        oracle.assert_grad_cap(dcap.cpu(), grad, x, cap, case.dim)


@by_dtype
@by_traversal
def test_the_same_bits_as_on_the_cpu(case: Case, dtype: torch.dtype) -> None:
    there, here = (every_result(*inputs(case, dtype, device), case.dim, soft=False) for device in ("cuda", "cpu"))
    for got, want in zip(there, here, strict=True):
        assert got.stride() == want.stride()
        # Sums have a bound, not bits, and their own tests.
        if not (got.dtype.is_floating_point and tuple(got.shape) in ((), case.cap_shape)):
            oracle.assert_same_bits(got.cpu(), want)


@by_dtype
@by_traversal
def test_many_runs_give_the_same_bits(case: Case, dtype: torch.dtype) -> None:
    arguments = inputs(case, dtype)
    first = every_result(*arguments, case.dim)
    for _ in range(10):
        assert_all_same_bits(every_result(*arguments, case.dim), first)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.filterwarnings("error")
@by_traversal
def test_deterministic_algorithms_are_satisfied(case: Case) -> None:
    arguments = inputs(case, torch.float32)
    # This mode fills fresh memory with NaN: what a kernel did not write would show.
    first = every_result(*arguments, case.dim)
    torch.use_deterministic_algorithms(False)
    assert_all_same_bits(every_result(*arguments, case.dim), first)


@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_gradient_of_the_penalty_on_the_cpu_is_refused(case: Case) -> None:
    # autograd moves a 0-dimensional gradient itself; reading it here would break the capture of a graph.
    x, cap, grad = inputs(case, torch.float32)
    y = torch.ops.dreluop.capped_relu(x, cap, case.dim)
    with pytest.raises(ValueError, match="grad_penalty: got a tensor on another device"):
        torch.ops.dreluop.capped_relu_backward(grad, y, cap, case.dim, [], True, True, 0.5, torch.tensor(1.5))


@pytest.mark.parametrize(("save", "bytes_per_element"), [("output", 4), ("mask", 4.25)])
def test_memory_kept_for_backward(save: str, bytes_per_element: float) -> None:
    x = torch.randn(1024, 4096, device="cuda", requires_grad=True)
    cap = torch.rand(4096, device="cuda", requires_grad=True)
    dreluop.capped_relu(x, cap, save=save).sum().backward()
    x.grad = cap.grad = None
    before = torch.cuda.memory_allocated()
    y = dreluop.capped_relu(x, cap, save=save)
    assert torch.cuda.memory_allocated() - before == x.numel() * bytes_per_element
    assert y.requires_grad


def test_memory_of_a_pass() -> None:
    x, grad = (torch.randn(1024, 4096, device="cuda") for _ in range(2))
    cap = torch.rand(4096, device="cuda")
    for call in (
        lambda: torch.ops.dreluop.capped_relu(x, cap),
        lambda: torch.ops.dreluop.capped_relu_backward(grad, x, cap, 1, [], True, True, None, None),
    ):
        call()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        # The result, and partial sums that are small beside it.
        assert torch.cuda.max_memory_allocated() - before <= 1.05 * x.numel() * x.element_size()
