"""``torch.set_flush_denormal(True)`` on a CPU: subnormal numbers count as zero, as in ``torch.relu``; float16 has none.

(torch computes float16 as float32, where every float16 number is normal.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import dreluop
from dreluop.adaptive import surrogate_backward
from tests.support.backends import native_or_skip

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "native":
        native_or_skip()
    with dreluop.use_backend(request.param):
        yield


@contextmanager
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def bits(t: Tensor) -> Tensor:
    return t.contiguous().view(INTEGERS[t.element_size()])


def flushed(t: Tensor) -> Tensor:
    """t with zeros in the place of subnormal numbers, by integers alone."""
    if t.dtype == torch.float16:
        return t
    integers = bits(t)
    magnitude = integers & torch.iinfo(integers.dtype).max
    smallest_normal = bits(torch.tensor(torch.finfo(t.dtype).tiny, dtype=t.dtype))
    return torch.where(magnitude < smallest_normal, 0, integers).view(t.dtype)


def numbers(dtype: torch.dtype) -> Tensor:
    """Every number of 16 bits; of the larger types, numbers of every sign and exponent."""
    if dtype.itemsize == 2:
        return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    integer = INTEGERS[dtype.itemsize]
    exponents = torch.arange(2**12, dtype=integer) << (8 * dtype.itemsize - 12)
    return torch.cat([exponents, exponents + 1, torch.randint(2**20, (256,), dtype=integer)]).view(dtype)


def caps(dtype: torch.dtype) -> Tensor:
    tiny = torch.finfo(dtype).tiny
    smallest = torch.ones((), dtype=INTEGERS[dtype.itemsize]).view(dtype).item()
    nan, inf = float("nan"), float("inf")
    return torch.tensor([smallest, tiny - smallest, tiny, -smallest, 1.0, 0.0, -1.0, inf, nan], dtype=dtype)


def same(got: Tensor, want: Tensor) -> None:
    both_nan = got.isnan() & want.isnan()
    assert torch.equal(bits(got)[~both_nan], bits(want)[~both_nan])


@by_dtype
@pytest.mark.usefixtures("backend")
def test_every_number_under_every_kind_of_cap(dtype: torch.dtype) -> None:
    x, cap, g = numbers(dtype)[:, None].expand(-1, 9).clone(), caps(dtype), torch.tensor(3.0, dtype=dtype)
    want = torch.minimum(flushed(x), flushed(cap)).clamp(min=0) + 0.0
    inside = ((want > 0) & (want < flushed(cap))) | want.isnan()
    capped = (want == flushed(cap)) & (flushed(cap) > 0)
    x.requires_grad_()
    for save in ("output", "mask"):
        with flushing():
            y = dreluop.capped_relu(x, cap, save=save)
            (dx,) = torch.autograd.grad(y, x, g.expand_as(y))
        same(y.detach(), want)
        same(dx, torch.where(inside, g, 0))
    with flushing():
        counts = dreluop.saturation(x, cap)
        # One cap for all is another loop of the kernels.
        apart = [dreluop.capped_relu(x.detach()[:, i].contiguous(), one) for i, one in enumerate(cap)]
    assert counts.inside.tolist() == inside.sum(0).tolist()
    assert counts.capped.tolist() == capped.sum(0).tolist()
    same(torch.stack(apart, 1), want)


@by_dtype
@pytest.mark.usefixtures("backend")
def test_backward_of_what_was_saved_without_the_flag(dtype: torch.dtype) -> None:
    x = torch.full((4, 3), torch.finfo(dtype).tiny / 4, dtype=dtype, requires_grad=True)
    y = dreluop.capped_relu(x, torch.ones(3, dtype=dtype))
    assert torch.equal(bits(y.detach()), bits(x.detach()))
    with flushing():
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert dx.tolist() == [[float(dtype == torch.float16)] * 3] * 4


@by_dtype
@pytest.mark.usefixtures("backend")
def test_a_subnormal_gradient_is_passed_on(dtype: torch.dtype) -> None:
    """It is selected, not computed with, as by ``torch.relu``."""
    g = torch.full((4, 3), torch.finfo(dtype).tiny / 4, dtype=dtype)
    x = torch.full((4, 3), 0.5, dtype=dtype, requires_grad=True)
    cap = torch.ones(3, dtype=dtype)
    with flushing():
        (dx,) = torch.autograd.grad(dreluop.capped_relu(x, cap), x, g)
        (of_relu,) = torch.autograd.grad(torch.relu(x), x, g)
    assert torch.equal(bits(dx), bits(g)) and torch.equal(bits(dx), bits(of_relu))


@by_dtype
@pytest.mark.usefixtures("backend")
def test_straight_through(dtype: torch.dtype) -> None:
    x = torch.full((4, 3), torch.finfo(dtype).tiny / 4, dtype=dtype, requires_grad=True)
    cap = torch.ones(3, dtype=dtype)
    with surrogate_backward():
        y = dreluop.capped_relu(x, cap)
    with flushing():
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert dx.tolist() == [[float(dtype == torch.float16)] * 3] * 4


@by_dtype
def test_as_torch_relu_and_as_the_fused_form(dtype: torch.dtype) -> None:
    x, cap = numbers(dtype), torch.tensor(float("inf"), dtype=dtype)
    torch.compiler.reset()
    compiled = torch.compile(dreluop.capped_relu, backend="aot_eager")
    with flushing():
        relu, *ours = torch.relu(x), dreluop.capped_relu(x, cap), compiled(x, cap)
    minus_zero = torch.iinfo(INTEGERS[dtype.itemsize]).min
    for y in ours:
        same(y, torch.where(bits(relu) == minus_zero, 0, bits(relu)).view(dtype))
