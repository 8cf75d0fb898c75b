"""saturation: counts per cap, and samples with an element inside."""

from __future__ import annotations

import pytest
import torch

from tests.support import oracle
from tests.support.cases import CASES, DTYPES, FEW_CASES, MIXED_DTYPES, Case, dtype_id, mixed_id, special_values

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
WITH_SAMPLES = tuple(case for case in CASES if case.shape)


def check(backend, x: torch.Tensor, cap: torch.Tensor, dim: int) -> None:
    counts, has_gradient = backend.cap_saturation(x, cap, dim)
    expected_counts, expected_has_gradient = oracle.saturation(x, cap, dim)
    oracle.assert_same_bits(counts, expected_counts)
    oracle.assert_same_bits(has_gradient, expected_has_gradient)


@by_dtype
@pytest.mark.parametrize("case", WITH_SAMPLES, ids=str)
def test_counts(backend, case: Case, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    check(backend, x, cap, case.dim)


@pytest.mark.parametrize("dtypes", MIXED_DTYPES, ids=mixed_id)
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_cap_of_another_dtype(backend, case: Case, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    check(backend, *case.inputs(*dtypes), case.dim)


@by_dtype
def test_special_values(backend, dtype: torch.dtype) -> None:
    values = special_values(dtype)
    x = values[:, None, None].expand(-1, values.numel(), 40).contiguous()
    check(backend, x, values, 1)
    check(backend, x[..., 0], values, 1)
    for cap in values:
        check(backend, x, cap, 1)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "permuted", "narrow"])
@pytest.mark.parametrize("cap_shape", [(), (6,), (6, 9, 7)], ids=["layer", "channel", "neuron"])
def test_one_live_element_makes_its_sample_live(backend, cap_shape: tuple[int, ...], layout: str) -> None:
    case = Case((5, 6, 9, 7), cap_shape, layout=layout)
    # Dead: half of the elements off, half capped.
    dead = torch.where(torch.arange(5 * 6 * 9 * 7).reshape(case.shape) % 2 == 0, -1.0, 2.0)
    dead[3, 5, 8, 6] = 0.5
    dead[1, 0, 0, 0] = float("nan")
    counts, has_gradient = backend.cap_saturation(case.lay_out(dead), torch.ones(cap_shape), 1)
    assert has_gradient.tolist() == [False, True, False, True, False]
    assert counts.sum().item() == dead.numel()
    assert counts[1].sum().item() == 2


@by_dtype
def test_more_counts_than_a_small_integer_holds(backend, dtype: torch.dtype) -> None:
    # 3 x 70,000 of each kind over one cap, and 70,000 rows of three caps.
    x = torch.tensor([-1.0, 0.5, 2.0], dtype=dtype).repeat(70_000)
    assert backend.cap_saturation(x, torch.ones(()), 0)[0].tolist() == [70_000] * 3
    assert backend.cap_saturation(x.view(70_000, 3), torch.ones(3), 1)[0].tolist() == (70_000 * torch.eye(3)).tolist()


def test_same_counts_from_input_and_output(backend) -> None:
    for case in FEW_CASES:
        x, cap = case.inputs(torch.float32)
        for got, want in zip(
            backend.cap_saturation(backend.capped_relu(x, cap, case.dim), cap, case.dim),
            backend.cap_saturation(x, cap, case.dim),
            strict=True,
        ):
            oracle.assert_same_bits(got, want)
