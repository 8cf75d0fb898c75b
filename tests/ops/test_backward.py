"""backward: the gradient of x bit for bit, the gradient of the cap within its bound, from either thing saved."""

from __future__ import annotations

import math
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.support import oracle
from tests.support.cases import (
    CASES,
    DTYPES,
    FEW_CASES,
    LAYOUTS,
    MIXED_DTYPES,
    Case,
    all_bit_patterns,
    dtype_id,
    mixed_id,
    special_values,
)

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
by_save = pytest.mark.parametrize("save", ["output", "mask"])


def run(
    backend: SimpleNamespace, grad: Tensor, x: Tensor, cap: Tensor, dim: int, save: str = "output"
) -> tuple[Tensor, Tensor]:
    """Backward from what forward gave."""
    if save == "output":
        return backend.capped_relu_backward(
            grad, backend.capped_relu(x, cap, dim), cap, dim, (), True, True, None, None
        )[:2]
    y, mask, _ = backend.capped_relu_with_aux(x, cap, dim, True, None)
    return backend.capped_relu_backward(grad, mask, cap, dim, oracle.mask_order(y, cap), True, True, None, None)[:2]


def check(result: tuple[Tensor, Tensor], grad: Tensor, x: Tensor, cap: Tensor, dim: int) -> None:
    dx, dcap = result
    oracle.assert_same_bits(dx, oracle.grad_x(grad, x, cap, dim))
    oracle.assert_grad_cap(dcap, grad, x, cap, dim)


@by_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_from_output_and_mask(backend, case: Case, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    grad = torch.empty_like(x).copy_(case.grad(dtype))
    from_output, from_mask = (run(backend, grad, x, cap, case.dim, save) for save in ("output", "mask"))
    check(from_output, grad, x, cap, case.dim)
    oracle.assert_same_bits(from_mask[0], from_output[0])
    oracle.assert_same_bits(from_mask[1], from_output[1])
    assert from_output[0].stride() == torch.empty_like(x).stride()
    # A mask whose order is not that of memory gives dx in the order of the mask.
    order = oracle.mask_order(torch.empty_like(x), cap)
    assert from_mask[0].stride() == torch.empty_permuted(x.shape, order).stride()


@by_save
@pytest.mark.parametrize("dtypes", MIXED_DTYPES, ids=mixed_id)
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_cap_of_another_dtype(backend, case: Case, dtypes: tuple[torch.dtype, torch.dtype], save: str) -> None:
    x, cap = case.inputs(*dtypes)
    grad = case.grad(x.dtype)
    check(run(backend, grad, x, cap, case.dim, save), grad, x, cap, case.dim)


GRADIENT_LAYOUTS = [name for name in LAYOUTS if name != "channels_last_3d"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("x_layout", ["contiguous", "channels_last", "permuted", "narrow"])
@pytest.mark.parametrize("grad_layout", [*GRADIENT_LAYOUTS, "expanded", "scalar", "channel_only"])
@pytest.mark.parametrize("cap_shape", [(), (6,), (6, 9, 7)], ids=["layer", "channel", "neuron"])
def test_gradient_with_other_strides(
    backend, cap_shape: tuple[int, ...], grad_layout: str, x_layout: str, dtype: torch.dtype
) -> None:
    case = Case((3, 6, 9, 7), cap_shape, layout=x_layout)
    x, cap = case.inputs(dtype)
    grad = case.grad(dtype)
    if grad_layout == "expanded":
        grad = grad[:1].expand(case.shape)
    elif grad_layout == "scalar":  # what sum().backward() gives
        grad = torch.full((), 0.7, dtype=dtype).expand(case.shape)
    elif grad_layout == "channel_only":
        grad = grad[:1, :, :1, :1].expand(case.shape)
    else:
        grad = LAYOUTS[grad_layout](grad)
    for save in ("output", "mask"):
        dx, dcap = run(backend, grad, x, cap, 1, save)
        check((dx, dcap), grad, x, cap, 1)
        assert dx.stride() == torch.empty_like(x).stride()


@by_save
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_gradient_that_is_not_finite_stays_in_its_region(backend, case: Case, dtype: torch.dtype, save: str) -> None:
    x, cap = case.inputs(dtype)
    region = oracle.regions(x, cap, case.dim)
    clean = case.grad(dtype)
    for poisoned, bad in product((oracle.OFF, oracle.INSIDE, oracle.CAPPED), (math.nan, math.inf, -math.inf)):
        grad = clean.masked_fill(region == poisoned, bad)
        dx, dcap = run(backend, grad, x, cap, case.dim, save)
        check((dx, dcap), grad, x, cap, case.dim)
        assert dx.isfinite().all() == (poisoned != oracle.INSIDE)
        assert dcap.isfinite().all() == (poisoned != oracle.CAPPED)


@by_save
@by_dtype
def test_special_values_against_special_caps(backend, dtype: torch.dtype, save: str) -> None:
    values = special_values(dtype)
    n = values.numel()
    x = torch.stack([values.repeat(4)[:67]] * n).expand(2, n, 67).contiguous()
    grad = torch.randn(x.shape).to(dtype)
    check(run(backend, grad, x, values, 1, save), grad, x, values, 1)
    for cap in values:
        check(run(backend, grad, x, cap, 1, save), grad, x, cap, 1)
    neuron = values[:, None].expand(n, 67).contiguous()
    check(run(backend, grad, x, neuron, 1, save), grad, x, neuron, 1)


@by_save
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("cap", [1.0, 1e-6, 0.0, -1.0, float("inf"), float("nan")])
def test_every_half_value(backend, dtype: torch.dtype, cap: float, save: str) -> None:
    x, m = all_bit_patterns(dtype), torch.tensor([cap])
    grad = torch.randn(x.shape).to(dtype)
    check(run(backend, grad, x, m, 0, save), grad, x, m, 0)


@by_save
@pytest.mark.parametrize("need_x", [False, True], ids=["", "need_x"])
@pytest.mark.parametrize("need_cap", [False, True], ids=["", "need_cap"])
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_only_what_is_asked_for(backend, case: Case, need_x: bool, need_cap: bool, save: str) -> None:
    x, cap = case.inputs(torch.float32)
    grad = case.grad(torch.float32)
    both = run(backend, grad, x, cap, case.dim, save)
    y, mask, _ = backend.capped_relu_with_aux(x, cap, case.dim, save == "mask", None)
    saved, order = (mask, oracle.mask_order(y, cap)) if save == "mask" else (y, ())
    *some, dbias = backend.capped_relu_backward(grad, saved, cap, case.dim, order, need_x, need_cap, None, None)
    assert dbias.numel() == 0
    for asked, got, full in zip((need_x, need_cap), some, both, strict=True):
        if asked:
            oracle.assert_same_bits(got, full)
        else:
            assert (got.numel(), got.dtype) == (0, full.dtype)


@by_dtype
def test_y_in_strided_memory(backend, dtype: torch.dtype) -> None:
    # What the in-place form saves: y has the strides of x, which need not be dense.
    for layout in ("step", "narrow", "rows", "transposed", "permuted"):
        case = Case((6, 35, 33), (35,), layout=layout)
        x, cap = case.inputs(dtype)
        y = LAYOUTS[layout](oracle.forward(x, cap))
        grad = case.grad(dtype)
        result = backend.capped_relu_backward(grad, y, cap, 1, (), True, True, None, None)[:2]
        check(result, grad, x, cap, 1)


@by_dtype
@pytest.mark.parametrize("shape", [(33,), (6, 7)], ids=["channel", "neuron"])
def test_cap_in_strided_memory(backend, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    case = Case((5, *shape), shape)
    x, cap = case.inputs(dtype)
    cap = LAYOUTS["transposed" if len(shape) > 1 else "step"](cap)
    grad = case.grad(dtype)
    dx, dcap = run(backend, grad, x, cap, 1)
    check((dx, dcap), grad, x, cap, 1)
    assert dcap.is_contiguous()
