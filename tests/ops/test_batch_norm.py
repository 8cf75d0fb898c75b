"""The operators of batch norm with a capped activation: the compiled kernels and the reference, against fp64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dreluop.ops import batch_norm as reference
from dreluop.ops.schemas import BATCH_NORM
from tests.support.backends import native_cuda_or_skip, native_or_skip
from tests.support.devices import on_device

EPS = 1e-5
OPS = torch.ops.dreluop


@pytest.fixture(autouse=True)
def ops(device: torch.device) -> SimpleNamespace:
    """The operators of a device, called with CPU tensors."""
    if device.type == "cpu":
        native_or_skip()
        return SimpleNamespace(**{name: getattr(OPS, name) for name in BATCH_NORM})
    native_cuda_or_skip()
    return SimpleNamespace(**{name: on_device(getattr(OPS, name), device) for name in BATCH_NORM})


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "sliced": lambda x: torch.stack([x, -x], -1).flatten(-2)[..., ::2],
}
# By rows of few channels and of many, by columns with whole vectors and without, by columns of short runs.
SHAPES = {
    "rows": (3, 5, 33, 31),
    "many-channels": (2, 40, 20, 20),
    "long-rows": (2, 3, 130, 130),
    "short-rows": (20, 6, 3, 3),
    "columns": (70, 64),
    "odd-columns": (300, 7),
    "wide-columns": (9, 1300),
    "three": (4, 3, 7),
    "five": (2, 3, 4, 5, 6),
    "one-channel": (6, 1, 5, 5),
}
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
EPSILON = {torch.float32: 2**-23, torch.float64: 2**-52, torch.float16: 2**-10, torch.bfloat16: 2**-7}


class Data:
    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, layout: str, one_cap: bool = False) -> None:
        torch.manual_seed(sum(shape))
        c = shape[1]
        make = LAYOUTS[layout]
        shift = (torch.arange(c) % 7).view(-1, *[1] * (len(shape) - 2))
        self.x = make((torch.randn(shape, dtype=torch.float64) * 2 + shift).to(dtype))
        self.grad = make(torch.randn(shape, dtype=torch.float64).to(dtype))
        self.residual = make(torch.randn(shape, dtype=torch.float64).to(dtype))
        parameter = torch.float64 if dtype == torch.float64 else torch.float32
        self.weight = (torch.rand(c, dtype=torch.float64) + 0.5).to(parameter)
        self.bias = torch.randn(c, dtype=torch.float64).to(parameter)
        self.cap = (torch.rand(1 if one_cap else c, dtype=torch.float64) + 0.5).to(parameter)


def view(t: Tensor, x: Tensor) -> Tensor:
    return t.double().reshape([1, -1] + [1] * (x.ndim - 2))


def expected_t(d: Data, residual: bool = False) -> Tensor:
    t = F.batch_norm(d.x.double(), None, None, d.weight.double(), d.bias.double(), True, 0.0, EPS)
    return t + d.residual.double() if residual else t


def run(ops: SimpleNamespace, d: Data, residual: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor, Tensor] = ops.capped_batch_norm(
        d.x, d.cap, d.weight, d.bias, None, None, d.residual if residual else None, EPS, residual
    )
    return result


def expected_gradients(d: Data, y: Tensor) -> list[Tensor]:
    """From the region of y, so that rounding at its borders is no error."""
    m = view(d.cap.to(d.x.dtype), d.x)
    y64, g, x = y.double(), d.grad.double(), d.x.double()
    u, to_cap = torch.where((y64 > 0) & (y64 < m), g, 0), torch.where((y64 == m) & (m > 0), g, 0)
    dims = [i for i in range(x.ndim) if i != 1]
    mean, var = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
    normal = (x - mean) / (var + EPS).sqrt()
    dx = u - u.mean(dims, keepdim=True) - normal * (u * normal).mean(dims, keepdim=True)
    dx = dx * view(d.weight, x) / (var + EPS).sqrt()
    dcap = to_cap.sum(dims) if d.cap.numel() == d.x.shape[1] else to_cap.sum().reshape(1)
    return [dx, (u * normal).sum(dims), u.sum(dims), dcap, u]


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_training(ops: SimpleNamespace, shape: str, dtype: torch.dtype, layout: str, residual: bool) -> None:
    d = Data(SHAPES[shape], dtype, layout)
    y, mean, var, packed = run(ops, d, residual)
    eps = EPSILON[dtype]
    t = expected_t(d, residual)
    expected = torch.minimum(t, view(d.cap.to(dtype), d.x)).clamp(min=0)
    assert y.stride() == torch.empty_like(d.x).stride()
    assert y.dtype == dtype
    # The few steps of fp32, and what torch's own fp64 is off.
    steps = 1e-12 if dtype == torch.float64 else 2e-6
    assert (y.double() - expected).abs().max() <= eps * max(1, t.abs().max().item()) + steps
    dims = [i for i in range(d.x.ndim) if i != 1]
    torch.testing.assert_close(mean.double(), d.x.double().mean(dims), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), d.x.double().var(dims, correction=0), rtol=1e-5, atol=0)
    got = ops.capped_batch_norm_backward(
        d.grad, d.x, d.cap, d.weight, d.bias, mean, var, packed if residual else None, EPS, *[True] * 6
    )
    for gradient, exact in zip(got, expected_gradients(d, y), strict=True):
        rounding = EPSILON[gradient.dtype] * max(1, exact.abs().max().item())
        assert (gradient.double() - exact).abs().max() <= rounding + (1e-11 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_are_the_reference_bit_for_bit_for_given_statistics(
    ops: SimpleNamespace, shape: str, dtype: torch.dtype, layout: str
) -> None:
    d = Data(SHAPES[shape], dtype, layout, one_cap=True)
    mean, var = d.x.float().mean([i for i in range(d.x.ndim) if i != 1]), torch.rand(d.x.shape[1]) + 0.5
    for weight, bias, residual in ((d.weight, d.bias, None), (None, None, d.residual)):
        arguments = (d.x, d.cap, weight, bias, mean, var, residual, EPS, True)
        got, want = ops.capped_batch_norm(*arguments), reference.capped_batch_norm(*arguments)
        for a, b in zip(got, want, strict=True):
            # Torch's square roots of fp64 are not always the nearest number.
            assert torch.equal(a, b) or (dtype == torch.float64 and (a - b).abs().max() <= 1e-14)
        backward = (d.grad, d.x, d.cap, weight, bias, mean, var, None if residual is None else got[3], EPS, False)
        for a, b in zip(
            ops.capped_batch_norm_backward(*backward, *[True] * 5),
            reference.capped_batch_norm_backward(*backward, *[True] * 5),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=8 * EPSILON[dtype], atol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("mean", "deviation"), [(0, 1), (100, 1), (1000, 0.1)], ids=str)
def test_outputs_and_gradients_are_as_exact_as_of_torch(
    ops: SimpleNamespace, layout: str, mean: float, deviation: float
) -> None:
    d = Data((16, 64, 24, 24), torch.float32, layout)
    d.x = LAYOUTS[layout](torch.randn(d.x.shape) * deviation + mean)
    t, y = expected_t(d), run(ops, d)[0]
    exact = torch.minimum(t, view(d.cap, d.x)).clamp(min=0)
    by_torch = F.batch_norm(d.x, None, None, d.weight, d.bias, True, 0.0, EPS)
    theirs = torch.minimum(by_torch, view(d.cap, d.x).float()).clamp(min=0)
    assert (y - exact).abs().max() <= 2 * (theirs - exact).abs().max()
    assert (y - exact).square().mean().sqrt() <= 1.5 * (theirs - exact).square().mean().sqrt()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [3.0, 1e6, 0.1])
def test_constant_channels_have_no_variance(ops: SimpleNamespace, layout: str, value: float) -> None:
    d = Data((4, 40, 16, 17), torch.float32, layout)
    d.x = LAYOUTS[layout](torch.full_like(d.x, value))
    _, mean, var, _ = run(ops, d)
    assert torch.equal(mean, torch.full((40,), value))
    assert torch.equal(var, torch.zeros(40))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_sums_of_constant_gradients_keep_their_bound(ops: SimpleNamespace, layout: str) -> None:
    d = Data((32, 40, 64, 64), torch.float32, layout)
    d.grad = LAYOUTS[layout](torch.full_like(d.x, 0.1))
    y, mean, var, _ = run(ops, d)
    got = ops.capped_batch_norm_backward(d.grad, d.x, d.cap, d.weight, d.bias, mean, var, None, EPS, *[True] * 6)
    total = 0.1 * d.x.numel() / d.x.shape[1]
    for gradient, exact in zip(got[2:4], expected_gradients(d, y)[2:4], strict=True):
        assert (gradient.double() - exact).abs().max() <= 8 * 2**-23 * total


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_caps_and_numbers_that_are_special(ops: SimpleNamespace, layout: str, dtype: torch.dtype) -> None:
    d = Data((4, 6, 16, 17), dtype, layout)
    d.cap = torch.tensor([0.0, -1.0, math.nan, math.inf, 0.5, 0.5]).to(d.cap.dtype)
    d.x[0, 5, 0, 0] = math.nan
    y, mean, var, _ = run(ops, d)
    assert torch.equal(y[:, :2], torch.zeros_like(y[:, :2]))
    assert y[:, 2].isnan().all()
    assert y[:, 5].isnan().all()
    assert (y[:, 3] > 0.5).any()
    got = ops.capped_batch_norm_backward(d.grad, d.x, d.cap, d.weight, d.bias, mean, var, None, EPS, *[True] * 6)
    assert torch.equal(got[3][:3], torch.zeros_like(got[3][:3]))
    # Everything is inside where y is NaN.
    assert torch.equal(got[4][:, 2], d.grad[:, 2])
    assert torch.equal(got[4][:, 5], d.grad[:, 5])
    assert not got[4][:, :2].any()


def test_infinite_gradients_stay_in_their_region(ops: SimpleNamespace) -> None:
    d = Data((4, 6, 16, 17), torch.float32, "contiguous")
    y, mean, var, _ = run(ops, d)
    m = view(d.cap, d.x).float()
    d.grad = torch.where(y == m, math.inf, torch.where(y == 0, math.nan, d.grad))
    dx, dweight, dbias, dcap, _ = ops.capped_batch_norm_backward(
        d.grad, d.x, d.cap, d.weight, d.bias, mean, var, None, EPS, *[True] * 6
    )
    assert dx.isfinite().all()
    assert dweight.isfinite().all()
    assert dbias.isfinite().all()
    assert torch.equal(dcap, torch.full_like(dcap, math.inf))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", ["rows", "columns"])
def test_a_gradient_does_not_depend_on_what_else_is_needed(
    ops: SimpleNamespace, shape: str, training: bool, residual: bool
) -> None:
    d = Data(SHAPES[shape], torch.float32, "contiguous")
    _, mean, var, packed = run(ops, d, residual)
    arguments = (d.grad, d.x, d.cap, d.weight, d.bias, mean, var, packed if residual else None, EPS, training)
    every = ops.capped_batch_norm_backward(*arguments, *[True] * 5)
    for needed in itertools.product((True, False), repeat=5):
        for got, want, need in zip(ops.capped_batch_norm_backward(*arguments, *needed), every, needed, strict=True):
            assert torch.equal(got, want) if need else got.numel() == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_do_not_change_a_bit(ops: SimpleNamespace, layout: str) -> None:
    d = Data((16, 40, 33, 32), torch.float32, layout)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            y, mean, var, _ = run(ops, d)
            arguments = (d.grad, d.x, d.cap, d.weight, d.bias, mean, var, None, EPS, *[True] * 6)
            results.append([y, mean, var, *ops.capped_batch_norm_backward(*arguments)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["capped_batch_norm", "capped_batch_norm_backward"])
def test_opcheck(ops: SimpleNamespace, name: str) -> None:
    d = Data((3, 5, 4, 4), torch.float32, "channels_last")
    y, mean, var, packed = run(ops, d, residual=True)
    del y
    samples = {
        "capped_batch_norm": [
            (d.x, d.cap, d.weight, d.bias, None, None, d.residual, EPS, True),
            (d.x, d.cap, None, None, mean, var, None, EPS, False),
        ],
        "capped_batch_norm_backward": [
            (d.grad, d.x, d.cap, d.weight, d.bias, mean, var, packed, EPS, True, *[True] * 5),
            (d.grad, d.x, d.cap, None, None, mean, var, None, EPS, False, True, False, False, True, False),
        ],
    }
    for sample in samples[name]:
        torch.library.opcheck(getattr(OPS, name).default, sample)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3)}, "x: got shape"),
        ({"x": torch.ones(0, 5)}, "x: got shape"),
        ({"cap": torch.ones(5, 4)}, "cap: got shape"),
        ({"cap": torch.ones(4)}, "cap: got shape"),
        ({"weight": torch.ones(4)}, "weight: got shape"),
        ({"bias": torch.ones(1)}, "bias: got shape"),
        ({"mean": torch.ones(5)}, "mean, var: got one"),
        ({"residual": torch.ones(3, 4)}, "residual: got shape"),
    ],
    ids=str,
)
def test_what_the_operator_refuses(change: dict[str, Tensor], message: str) -> None:
    arguments = {
        "x": torch.ones(3, 5), "cap": torch.ones(5), "weight": None, "bias": None, "mean": None, "var": None,
        "residual": None, "eps": EPS, "mask": False,
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        OPS.capped_batch_norm(**arguments)
