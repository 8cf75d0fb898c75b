"""What a call is reported by shapes and strides alone, remembered from call to call."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from dreluop.backends.triton import call, plan
from dreluop.backends.triton.call import KernelCall


def of(x: torch.Tensor, cap: torch.Tensor, order: tuple[int, ...]) -> KernelCall:
    return KernelCall(x, cap, 1, order, x=x, y=x, residual=None)


def test_a_second_call_of_the_same_kind_computes_nothing_anew() -> None:
    call.geometry_of.cache_clear()
    plan.flat_plan.cache_clear()
    for _ in range(3):
        x, cap = torch.randn(4, 6, 5), torch.rand(6)
        found = of(x, cap, (0, 1, 2))
        plan.flat_plan(found.vec, found.numel, 256)
    for remembered in (call.geometry_of, plan.flat_plan):
        info = remembered.cache_info()
        assert (info.misses, info.hits) == (1, 2)


def test_what_differs_is_not_taken_for_the_same() -> None:
    x = torch.randn(4, 6, 5)
    dense, strided = of(x, torch.rand(6), (0, 1, 2)), of(x.mT.contiguous().mT, torch.rand(6), (0, 1, 2))
    assert (dense.sizes, dict(dense.strides)) == ((), {"x": (), "y": (), "residual": ()})
    assert strided.sizes and strided.strides["x"] == strided.strides["y"] != ()
    assert of(x, torch.rand(1), (0, 1, 2)).layout != dense.layout
    assert of(x.half(), torch.rand(6), (0, 1, 2)).vec != dense.vec


def test_what_is_shared_by_calls_cannot_be_written() -> None:
    with pytest.raises(TypeError, match="does not support item assignment"):
        of(torch.randn(4, 6, 5), torch.rand(6), (0, 1, 2)).strides["x"] = (1,)  # type: ignore[index]
