"""The kernel that `benchmarks.bench_triton_op` traces, interpreted."""

from __future__ import annotations

import pytest
import torch

from benchmarks import traced_forward as traced
from dreluop.backends import reference
from dreluop.backends.triton.launch import launch
from tests.support import oracle


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 64), (3, 7), (2, 3, 4, 5)])
def test_it_computes_what_the_operator_does(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, cap = torch.randn(shape).to(dtype), torch.rand(shape[1])
    y = torch.empty_like(x)
    of = traced.planned(x, cap)
    constants = {"TILE": of.tile, "VEC": of.vec, "MODE": of.mode, "WIDE": of.wide}
    sizes = (of.numel, of.full, of.inner, of.caps, of.cap_stride)
    launch(traced.few_arguments, of.programs, x.device, x, y, cap, *sizes, warps=of.warps, **constants)
    oracle.assert_same_bits(y, reference.capped_relu(x, cap, 1))
