"""tangent: u where inside, v where capped, 0 elsewhere, bit for bit, from either thing saved."""

from __future__ import annotations

import math
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
    dtype_id,
    mixed_id,
    special_values,
)

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


def run(backend: SimpleNamespace, u: Tensor, v: Tensor | None, x: Tensor, cap: Tensor, dim: int, save: str) -> Tensor:
    y, mask, _ = backend.capped_relu_with_aux(x, cap, dim, save == "mask", None)
    if save == "mask":
        return backend.capped_relu_jvp(u, v, mask, cap, dim, oracle.mask_order(y, cap))
    return backend.capped_relu_jvp(u, v, y, cap, dim, ())


def tangent_of_cap(case: Case, dtype: torch.dtype) -> Tensor:
    return torch.randn(case.cap_shape).to(dtype)


@by_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_from_output_and_mask(backend, case: Case, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    u, v = torch.empty_like(x).copy_(case.grad(dtype)), tangent_of_cap(case, dtype)
    expected = oracle.tangent(u, v, x, cap, case.dim)
    for save in ("output", "mask"):
        oracle.assert_same_bits(run(backend, u, v, x, cap, case.dim, save), expected)
    assert run(backend, u, v, x, cap, case.dim, "output").stride() == torch.empty_like(x).stride()


@by_dtype
@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_without_a_tangent_of_the_cap(backend, case: Case, save: str, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    u = case.grad(dtype)
    oracle.assert_same_bits(run(backend, u, None, x, cap, case.dim, save), oracle.grad_x(u, x, cap, case.dim))


@pytest.mark.parametrize("dtypes", MIXED_DTYPES, ids=mixed_id)
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_tangent_of_the_cap_is_rounded_to_the_dtype_of_u(
    backend, case: Case, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    x, cap = case.inputs(*dtypes)
    u, v = case.grad(x.dtype), tangent_of_cap(case, cap.dtype)
    for save in ("output", "mask"):
        oracle.assert_same_bits(run(backend, u, v, x, cap, case.dim, save), oracle.tangent(u, v, x, cap, case.dim))


@pytest.mark.parametrize("x_layout", ["contiguous", "channels_last", "permuted"])
@pytest.mark.parametrize("u_layout", ["contiguous", "channels_last", "transposed", "step", "offset", "expanded"])
@pytest.mark.parametrize("cap_shape", [(), (6,), (6, 9, 7)], ids=["layer", "channel", "neuron"])
def test_tangents_with_other_strides(backend, cap_shape: tuple[int, ...], u_layout: str, x_layout: str) -> None:
    case = Case((3, 6, 9, 7), cap_shape, layout=x_layout)
    x, cap = case.inputs(torch.float32)
    u = case.grad(torch.float32)
    u = u[:1].expand(case.shape) if u_layout == "expanded" else LAYOUTS[u_layout](u)
    v = tangent_of_cap(case, torch.float32)
    v = LAYOUTS["step"](v) if cap_shape else v
    expected = oracle.tangent(u, v, x, cap)
    for save in ("output", "mask"):
        oracle.assert_same_bits(run(backend, u, v, x, cap, 1, save), expected)
    oracle.assert_same_bits(run(backend, u, torch.ones(()).expand(cap_shape), x, cap, 1, "output"),
                            oracle.tangent(u, torch.ones(cap_shape), x, cap))  # fmt: skip


@by_dtype
def test_special_values_select_and_never_multiply(backend, dtype: torch.dtype) -> None:
    values = special_values(dtype)
    n = values.numel()
    x = values.repeat(4)[:67].expand(2, n, 67).contiguous()
    for u_value, v_value in ((math.inf, 1.0), (math.nan, 1.0), (1.0, math.inf), (1.0, math.nan), (-0.0, -0.0)):
        u, v = torch.full_like(x, u_value), torch.full_like(values, v_value)
        for save in ("output", "mask"):
            oracle.assert_same_bits(run(backend, u, v, x, values, 1, save), oracle.tangent(u, v, x, values))
