"""forward and forward_: the value of every element, bit for bit."""

from __future__ import annotations

import pytest
import torch

from tests.support import oracle
from tests.support.cases import (
    CASES,
    DTYPES,
    FEW_CASES,
    LAYOUTS,
    MIXED_DTYPES,
    SENTINEL,
    WRITABLE_CASES,
    Case,
    all_bit_patterns,
    dtype_id,
    mixed_id,
    special_values,
)

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


@by_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value(backend, case: Case, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    before = x.clone()
    y = backend.capped_relu(x, cap, case.dim)
    oracle.assert_same_bits(y, oracle.forward(x, cap, case.dim))
    assert y.stride() == torch.empty_like(x).stride()
    oracle.assert_same_bits(x, before)


@by_dtype
@pytest.mark.parametrize("case", WRITABLE_CASES, ids=str)
def test_value_in_place(backend, case: Case, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    expected = oracle.forward(x, cap, case.dim)
    strides, address = x.stride(), x.data_ptr()
    backend.capped_relu_(x, cap, case.dim)
    oracle.assert_same_bits(x, expected)
    assert (x.stride(), x.data_ptr()) == (strides, address)


@by_dtype
@pytest.mark.parametrize("layout", ["step", "narrow", "rows", "offset"])
def test_in_place_leaves_the_memory_around_alone(backend, layout: str, dtype: torch.dtype) -> None:
    case = Case((6, 35, 33), (35,), layout=layout)
    x, cap = case.inputs(dtype)
    buffer = x._base
    assert buffer is not None
    expected = buffer.clone()
    expected.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(oracle.forward(x, cap))
    backend.capped_relu_(x, cap, 1)
    oracle.assert_same_bits(buffer, expected)
    assert int((buffer == SENTINEL).sum()) == buffer.numel() - x.numel()


@pytest.mark.parametrize("dtypes", MIXED_DTYPES, ids=mixed_id)
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_cap_of_another_dtype(backend, case: Case, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    x, cap = case.inputs(*dtypes)
    y = backend.capped_relu(x, cap, case.dim)
    assert y.dtype == x.dtype
    oracle.assert_same_bits(y, oracle.forward(x, cap, case.dim))


@pytest.mark.parametrize("dtypes", MIXED_DTYPES, ids=mixed_id)
def test_cap_is_rounded_before_it_is_compared(backend, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    x_dtype, cap_dtype = dtypes
    eps = torch.finfo(x_dtype).eps
    # Around the ties of rounding to x's dtype: even and odd neighbors, just under, on and just over the middle.
    base = torch.tensor([1.0, 1 + eps], dtype=torch.float64)[:, None]
    cap = (base + eps * torch.tensor([0, 0.25, 0.499, 0.5, 0.5 + 2**-20, 0.501, 0.75], dtype=torch.float64)).flatten()
    overflow = torch.tensor([1e5, 3.4e38, 1e300, 1e-30, 1e-45, 1e-300], dtype=torch.float64)
    cap = torch.cat([cap, overflow, -overflow]).to(cap_dtype)
    near = torch.tensor([1 - eps / 2, 1, 1 + eps, 1 + 2 * eps, 1 + 3 * eps, 0, 1e4, torch.inf], dtype=torch.float64)
    x = near.to(x_dtype)[:, None].expand(-1, cap.numel()).contiguous()
    oracle.assert_same_bits(backend.capped_relu(x, cap, 1), oracle.forward(x, cap, 1))


def _special_pairs(dtype: torch.dtype) -> list[tuple[str, torch.Tensor, torch.Tensor, int]]:
    values = special_values(dtype)
    n = values.numel()
    # 67 columns: whole vectors and a tail of every width.
    rows = values.repeat(67 // n + 1)[:67].expand(n, 67)
    return [
        ("inner_1", values[:, None].expand(n, n).contiguous(), values, 1),
        ("inner_67", torch.stack([rows, rows.flip(1)]).contiguous(), values, 1),
        ("neuron", torch.stack([rows, rows.flip(1)]).contiguous(), values[:, None].expand(n, 67).contiguous(), 1),
        *(("layer", rows.contiguous(), cap, 1) for cap in values),
    ]


@by_dtype
@pytest.mark.parametrize("in_place", [False, True], ids=["out_of_place", "in_place"])
def test_special_values_against_special_caps(backend, dtype: torch.dtype, in_place: bool) -> None:
    for _, x, cap, dim in _special_pairs(dtype):
        expected = oracle.forward(x, cap, dim)
        y = x.clone() if in_place else backend.capped_relu(x, cap, dim)
        if in_place:
            backend.capped_relu_(y, cap, dim)
        oracle.assert_same_bits(y, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("cap", [1.0, 0.3, 1e-6, 0.0, -0.0, -1.0, float("inf"), float("-inf"), float("nan")])
def test_every_half_value(backend, dtype: torch.dtype, cap: float) -> None:
    x, m = all_bit_patterns(dtype), torch.tensor([cap])
    oracle.assert_same_bits(backend.capped_relu(x, m, 0), oracle.forward(x, m, 0))


@by_dtype
@pytest.mark.parametrize("layout", ["step", "offset", "expanded"])
def test_cap_in_strided_memory(backend, layout: str, dtype: torch.dtype) -> None:
    case = Case((5, 33, 7), (33,))
    x, cap = case.inputs(dtype)
    cap = cap[:1].expand(33) if layout == "expanded" else LAYOUTS[layout](cap)
    oracle.assert_same_bits(backend.capped_relu(x, cap, 1), oracle.forward(x, cap, 1))


@by_dtype
@pytest.mark.parametrize("layout", ["transposed", "permuted", "narrow"])
@pytest.mark.parametrize("x_layout", ["contiguous", "channels_last"])
def test_neuron_cap_in_strided_memory(backend, layout: str, x_layout: str, dtype: torch.dtype) -> None:
    case = Case((5, 6, 7, 4), (6, 7, 4), layout=x_layout)
    x, cap = case.inputs(dtype)
    cap = LAYOUTS[layout](cap)
    oracle.assert_same_bits(backend.capped_relu(x, cap, 1), oracle.forward(x, cap, 1))


def test_writing_over_the_result_leaves_the_input(backend) -> None:
    x = torch.ones(8)
    backend.capped_relu(x, torch.tensor(2.0), 1).fill_(5)
    assert torch.equal(x, torch.ones(8))


def test_dim_defaults_to_1() -> None:
    x, cap = torch.ones(2, 2), torch.tensor([0.25, 0.5])
    assert torch.equal(torch.ops.dreluop.capped_relu(x, cap), cap.expand(2, 2))
    torch.ops.dreluop.capped_relu_(x, cap)
    assert torch.equal(x, cap.expand(2, 2))
