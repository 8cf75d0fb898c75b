"""Sums over many elements: the bound on constant data, where rounding errors add up, and the same bits on every run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.support import oracle
from tests.support.cases import CASES, DTYPES, Case, dtype_id

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
TERMS = (64, 1000, 16_000, 2**20)


def affordable(backend: SimpleNamespace, terms: int) -> int:
    """Fewer terms where each costs far more than on a device: in Triton's interpreter."""
    return min(terms, 2**16) if backend.name == "triton" else terms


def grad_cap(backend: SimpleNamespace, grad: Tensor, y: Tensor, cap: Tensor, dim: int = 1) -> Tensor:
    return backend.capped_relu_backward(grad, y, cap, dim, (), False, True, None, None)[1]


def assert_constant_sum(got: Tensor, term: Tensor, terms: int) -> None:
    expected = torch.full(got.shape, term.double().item() * terms, dtype=torch.float64)
    oracle.assert_sum(got, expected, expected.abs(), oracle.accumulator(term, got))


@by_dtype
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("cap_dtype", [None, torch.float32, torch.float64], ids=["", "cap_float32", "cap_float64"])
@pytest.mark.parametrize(
    ("shape", "cap_shape", "dim"),
    [((0,), (), 0), ((0, 3), (3,), 1), ((3, 0), (3,), 0), ((0, 3, 8), (8,), 2), ((0, 2, 2), (2, 2), 1)],
    ids=["layer", "inner_1", "inner_terms", "two_outer_dims", "neuron"],
)
def test_bound_on_constant_data(
    backend, shape: tuple[int, ...], cap_shape: tuple[int, ...], dim: int, cap_dtype: torch.dtype | None, terms: int,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    terms = affordable(backend, terms)
    # 0 stands for the dimension that makes up the number of terms per cap.
    others = torch.Size(size for size in shape if size).numel() // max(1, torch.Size(cap_shape).numel())
    shape = tuple(size or -(-terms // others) for size in shape)
    terms = torch.Size(shape).numel() // max(1, torch.Size(cap_shape).numel())
    cap = torch.full(cap_shape, 2.0, dtype=cap_dtype or dtype)
    y, grad = torch.full(shape, 2.0, dtype=dtype), torch.full(shape, 0.1, dtype=dtype)
    assert_constant_sum(grad_cap(backend, grad, y, cap, dim), grad.view(-1)[0], terms)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("save", ["output", "mask"])
def test_bound_on_very_many_constants(backend, save: str, dtype: torch.dtype) -> None:
    # The reference is slow, and sums in fp64: fewer terms do.
    terms = affordable(backend, 2**22 if backend.name.startswith("reference") else 2**26)
    cap, grad = torch.full((1,), 2.0), torch.full((terms,), 0.1, dtype=dtype)
    if save == "mask":
        saved = torch.full((terms // 4,), 0b10101010, dtype=torch.uint8)
        dcap = backend.capped_relu_backward(grad, saved, cap, 0, [0], False, True, None, None)[1]
    else:
        dcap = grad_cap(backend, grad, torch.full((terms,), 2.0, dtype=dtype), cap, 0)
    assert_constant_sum(dcap, grad[0], terms)


@by_dtype
@pytest.mark.parametrize("cap_shape", [(), (3,), (3, 5)], ids=["layer", "channel", "neuron"])
def test_bound_where_terms_cancel(backend, cap_shape: tuple[int, ...], dtype: torch.dtype) -> None:
    # The sum is small against its terms: an accumulator that lost their low bits would show.
    y, cap = torch.full((4000, 3, 5), 2.0, dtype=dtype), torch.full(cap_shape, 2.0, dtype=dtype)
    grad = torch.randn(4000, 3, 5)
    grad = torch.cat([grad[:2000], -grad[:2000]]).mul_(100).to(dtype)
    grad[-1] += 0.1
    oracle.assert_grad_cap(grad_cap(backend, grad, y, cap), grad, y, cap)


@by_dtype
def test_terms_of_very_different_size(backend, dtype: torch.dtype) -> None:
    y, cap = torch.full((30_000,), 2.0, dtype=dtype), torch.tensor(2.0, dtype=dtype)
    grad = torch.full((30_000,), 2**-10, dtype=dtype)
    grad[0], grad[15_000] = 2**14, -(2**14)
    oracle.assert_grad_cap(grad_cap(backend, grad, y, cap, 0), grad, y, cap, 0)


LARGE = (
    Case((300_001,), ()),
    Case((401, 1009), (1009,)),
    Case((60_013, 7), (7,)),
    Case((5, 11, 7001), (11,)),
    Case((16, 32, 33, 31), (32,), layout="channels_last"),
    Case((700, 333), (333,), layout="transposed"),
    Case((90, 61, 73), (61, 73)),
    Case((64, 67, 93), (67,), layout="narrow"),
)


def every_result(backend: SimpleNamespace, case: Case, dtype: torch.dtype) -> list[Tensor]:
    x, cap = case.inputs(dtype)
    grad, v = case.grad(dtype), torch.ones(case.cap_shape, dtype=dtype)
    y, mask, penalty = backend.capped_relu_with_aux(x, cap, case.dim, True, 0.5)
    results = [y, mask, penalty, backend.capped_relu(x, cap, case.dim), *backend.cap_saturation(x, cap, case.dim)]
    for saved, order in ((y, ()), (mask, oracle.mask_order(y, cap))):
        results += backend.capped_relu_backward(grad, saved, cap, case.dim, order, True, True, 0.5, torch.ones(()))
        results.append(backend.capped_relu_jvp(grad, v, saved, cap, case.dim, order))
        results.append(backend.capped_relu_surrogate_backward(grad, saved, cap, case.dim, order, None))
    results.append(backend.capped_relu_surrogate_backward(grad, x, cap, case.dim, (), v))
    return [*results, backend.cap_penalty([cap], 0.5)]


@by_dtype
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_two_runs_on_large_tensors_give_the_same_bits(backend, case: Case, dtype: torch.dtype) -> None:
    if backend.name == "triton":
        pytest.skip("hundreds of thousands of elements take minutes in Triton's interpreter; triton_cuda takes them")
    test_two_runs_give_the_same_bits(backend, case, dtype)


@by_dtype
@pytest.mark.parametrize("case", [case for case in CASES[::4] if case.shape], ids=str)
def test_two_runs_give_the_same_bits(backend, case: Case, dtype: torch.dtype) -> None:
    for first, second in zip(every_result(backend, case, dtype), every_result(backend, case, dtype), strict=True):
        oracle.assert_same_bits(first, second)


@pytest.mark.slow
@by_dtype
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_any_number_of_threads_gives_the_same_bits(native_backend, threads, case: Case, dtype: torch.dtype) -> None:
    threads(1)
    alone = every_result(native_backend, case, dtype)
    for n in (2, 3, 8):
        threads(n)
        for one, many in zip(alone, every_result(native_backend, case, dtype), strict=True):
            oracle.assert_same_bits(one, many)


@pytest.mark.slow
@by_dtype
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_values_with_two_threads(native_backend, threads, case: Case, dtype: torch.dtype) -> None:
    threads(2)
    x, cap = case.inputs(dtype)
    grad = case.grad(dtype)
    y = native_backend.capped_relu(x, cap, case.dim)
    oracle.assert_same_bits(y, oracle.forward(x, cap, case.dim))
    dx, dcap, _ = native_backend.capped_relu_backward(grad, y, cap, case.dim, (), True, True, None, None)
    oracle.assert_same_bits(dx, oracle.grad_x(grad, x, cap, case.dim))
    oracle.assert_grad_cap(dcap, grad, x, cap, case.dim)
    native_backend.capped_relu_(x, cap, case.dim)
    oracle.assert_same_bits(x, y)
