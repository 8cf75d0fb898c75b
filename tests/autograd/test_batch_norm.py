"""``dreluop.capped_batch_norm``: against torch's batch norm and ``capped_relu``, with its derivatives and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import dreluop
from dreluop import adaptive, capped_batch_norm
from dreluop.autograd import batch_norm
from dreluop.backends import native
from tests.support.backends import native_cuda_or_skip, native_or_skip

SHAPE = (4, 6, 5, 7)
NAMES = ("x", "weight", "bias", "cap", "residual")


def leaves(
    dtype: torch.dtype = torch.float64, residual: bool = True, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes: dict[str, tuple[int, ...]] = {"x": SHAPE, "weight": (6,), "bias": (6,), "cap": (6,)}
    if residual:
        shapes["residual"] = SHAPE
    made = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    made["cap"] = made["cap"].abs() + 0.3
    return {name: t.to(device, dtype).requires_grad_() for name, t in made.items()}


def running(dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    return torch.linspace(-1, 1, 6, dtype=dtype, device=device), torch.linspace(0.5, 2, 6, dtype=dtype, device=device)


def ours(given: dict[str, Tensor], statistics: tuple[Any, Any] = (None, None), training: bool = True) -> Tensor:
    return capped_batch_norm(
        given["x"], *statistics, given["weight"], given["bias"], given["cap"],
        training=training, momentum=0.3, residual=given.get("residual"),
    )  # fmt: skip


def expected(given: dict[str, Tensor], statistics: tuple[Any, Any] = (None, None), training: bool = True) -> Tensor:
    t = F.batch_norm(given["x"], *statistics, given["weight"], given["bias"], training, 0.3)
    if "residual" in given:
        t = t + given["residual"]
    return torch.relu(torch.minimum(t, given["cap"].view(-1, 1, 1)))


@pytest.fixture(params=[True, False], ids=["operator", "composite"])
def by_operator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> bool:
    served: bool = request.param
    if served:
        native_or_skip() if device.type == "cpu" else native_cuda_or_skip()
    else:
        monkeypatch.setattr(batch_norm, "_is_served", lambda call: False)
    return served


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_values_gradients_and_running_statistics(
    by_operator: bool, training: bool, residual: bool, device: torch.device
) -> None:
    given, want = (leaves(residual=residual, device=device) for _ in range(2))
    statistics, wanted_statistics = (running(device=device) for _ in range(2))
    y, wanted = ours(given, statistics, training), expected(want, wanted_statistics, training)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(statistics, wanted_statistics)
    grad = torch.linspace(-1, 2, y.numel(), dtype=y.dtype, device=device).reshape(SHAPE)
    y.backward(grad)
    wanted.backward(grad)
    for name in given:
        torch.testing.assert_close(given[name].grad, want[name].grad, msg=name)
    assert by_operator == (type(y.grad_fn).__name__ == "CappedBatchNormBackward")


@pytest.mark.parametrize("training", [False, True])
def test_second_derivatives(by_operator: bool, training: bool, device: torch.device) -> None:
    given = {
        name: t.detach()[:3, :, :2, :2].clone().requires_grad_() if t.ndim > 1 else t
        for name, t in leaves(device=device).items()
    }

    def function(*tensors: Tensor) -> Tensor:
        return ours(dict(zip(given, tensors, strict=True)), running(device=device), training)

    assert torch.autograd.gradcheck(function, tuple(given.values()), fast_mode=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, tuple(given.values()), fast_mode=True)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_that_can_be_differentiated_are_the_same(
    by_operator: bool, training: bool, device: torch.device
) -> None:
    given, want = (leaves(device=device) for _ in range(2))
    grad = torch.randn(SHAPE, dtype=torch.float64, device=device)
    y = ours(given, running(device=device), training)
    found = torch.autograd.grad(y, list(given.values()), grad, create_graph=True)
    exact = torch.autograd.grad(expected(want, running(device=device), training), list(want.values()), grad)
    for name, a, b in zip(given, found, exact, strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_transforms_and_forward_mode() -> None:
    given = leaves(residual=False)
    x, v = given["x"].detach(), torch.randn(SHAPE, dtype=torch.float64)
    fixed = {name: t.detach() for name, t in given.items()}
    for function in (ours, expected):
        _, tangent = torch.func.jvp(lambda x, f=function: f(fixed | {"x": x}), (x,), (v,))
        gradient = torch.func.grad(lambda x, f=function: f(fixed | {"x": x}).square().sum())(x)
        batched = torch.vmap(lambda x, f=function: f(fixed | {"x": x}, running(), False))(x.unsqueeze(0))
        if function is ours:
            found = tangent, gradient, batched
        else:
            torch.testing.assert_close(found, (tangent, gradient, batched))


@pytest.mark.skipif(not native.is_loaded(), reason="the compiled kernels are not built")
def test_memory_saved_is_x_and_numbers_per_channel() -> None:
    for residual in (False, True):
        given, sizes = leaves(torch.float32, residual), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=sizes: s.append(t.numel() * t.itemsize) or t, lambda t: t
        ):
            ours(given)
        x = given["x"]
        assert sum(sizes) == x.numel() * x.itemsize + 5 * 6 * 4 + (x.numel() // 4 if residual else 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_round_once(by_operator: bool, dtype: torch.dtype, device: torch.device) -> None:
    given = {name: t.detach().to(dtype) for name, t in leaves(torch.float32, device=device).items()}
    wide = {name: t.float() for name, t in given.items()}
    statistics, wanted_statistics = running(dtype, device), running(torch.float32, device)
    y, wanted = ours(given, statistics), expected(wide, wanted_statistics).to(dtype)
    # Sums in another order may lie at the border between two numbers.
    assert (y != wanted).float().mean() < 0.01
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(statistics, tuple(t.to(dtype) for t in wanted_statistics))


def test_surrogates_and_the_choice_of_a_backend_are_followed() -> None:
    given = leaves(residual=False)
    with adaptive.surrogate_backward():
        y = ours(given)
    assert type(y.grad_fn).__name__ != "CappedBatchNormBackward"
    with dreluop.use_backend("reference"):
        y = ours(given)
    assert type(y.grad_fn).__name__ != "CappedBatchNormBackward"


X, P = torch.ones(2, 3, 4), torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((1, None, None, None, None, P), {"training": True}, TypeError, "x: got int"),
        ((torch.ones(3), None, None, None, None, P), {"training": True}, ValueError, "x: got shape"),
        ((X, None, None, None, None, torch.ones(2)), {"training": True}, ValueError, "cap: got shape"),
        ((X, None, None, None, None, "6"), {"training": True}, TypeError, "cap: got str"),
        ((X, P, None, None, None, P), {"training": True}, ValueError, "running_mean, running_var: got one"),
        ((X, None, None, None, None, P), {}, ValueError, "training: got False without"),
        ((X, P, P, torch.ones(2), None, P), {}, ValueError, "weight: got shape"),
        ((X, P, P, None, P.to("meta"), P), {}, ValueError, "bias: got a tensor on meta"),
        ((X, P, P, None, None, P), {"residual": P}, ValueError, "residual: got shape"),
        ((X, P, P, None, None, P), {"training": 1}, TypeError, "training: got int"),
        ((X, P, P, None, None, P), {"momentum": None}, TypeError, "momentum: got NoneType"),
        ((torch.ones(1, 3), P, P, None, None, P), {"training": True}, ValueError, "x: got shape .*one value"),
    ],
    ids=str,
)
def test_what_is_refused(
    arguments: tuple[Any, ...], keywords: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        capped_batch_norm(*arguments, **keywords)


def test_neuron_caps_empty_tensors_and_numbers_go_through_torch() -> None:
    x = torch.randn(4, 3, 5)
    cap = torch.rand(3, 5)
    torch.testing.assert_close(
        capped_batch_norm(x, None, None, None, None, cap, training=True),
        torch.relu(torch.minimum(F.batch_norm(x, None, None, training=True), cap)),
    )
    assert capped_batch_norm(torch.ones(0, 3), P, P, None, None, 1.0).shape == (0, 3)
    torch.testing.assert_close(
        capped_batch_norm(x, None, None, None, None, 0.5, training=True),
        F.batch_norm(x, None, None, training=True).clamp(0, 0.5),
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_infinite_inputs_of_inference_have_the_gradient_of_their_region(
    value: float, residual: bool, layout: torch.memory_format, device: torch.device
) -> None:
    def gradients(backend: str) -> tuple[Tensor, ...]:
        x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
        x[1, 2, 3, 4] = value
        x = x.to(device, memory_format=layout).requires_grad_()
        more = torch.ones_like(x).requires_grad_() if residual else None
        mean, var, cap = (t.to(device) for t in (torch.zeros(3), torch.ones(3), torch.tensor(2.0)))
        with dreluop.use_backend(backend):
            y = capped_batch_norm(x, mean, var, None, None, cap, residual=more)
        y.nan_to_num().sum().backward()
        return (x.grad, more.grad) if more is not None else (x.grad,)

    for got, expected in zip(gradients("native"), gradients("reference"), strict=True):
        assert got is not None
        # Through the sum no gradient reaches NaN.
        torch.testing.assert_close(got, expected, equal_nan=True)
        assert bool(got.isfinite().all())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("place", [0, 7, -1])
def test_an_outlier_anywhere_costs_no_digits(place: int, layout: torch.memory_format, device: torch.device) -> None:
    x = torch.rand(64, 2, 32, 32, generator=torch.Generator().manual_seed(0)).lt(0.5).float() * 0.1
    x[0 if place >= 0 else -1].flatten(1)[:, place] = 100.3
    x = x.to(device, memory_format=layout)
    y = capped_batch_norm(x, None, None, None, None, torch.tensor(10.0, device=device), training=True)
    wide = x.double()
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0, keepdim=True)
    exact = ((wide - mean) / (var + 1e-5).sqrt()).clamp(0, 10)
    torch.testing.assert_close(y.double(), exact, rtol=2e-6, atol=2e-6)


MIXED = [
    (torch.float64, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float64),
    (torch.bfloat16, torch.float16), (torch.bfloat16, torch.float64), (torch.bfloat16, torch.float32),
]  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("of_x", "of_parameters"), MIXED)
def test_every_road_takes_the_same_dtypes(
    of_x: torch.dtype, of_parameters: torch.dtype, training: bool, device: torch.device
) -> None:
    def run(backend: str) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(6, 4, 5, generator=generator).to(device, of_x)
        weight, bias, mean, var = (
            torch.rand(4, generator=generator).add(0.5).to(device, of_parameters) for _ in range(4)
        )
        cap = torch.tensor(1.0, device=device)
        with dreluop.use_backend(backend):
            y = capped_batch_norm(x, mean, var, weight, bias.float(), cap, training=training)
        return y, mean, var

    for got, expected in zip(run("native"), run("reference"), strict=True):
        tolerance = max(torch.finfo(dtype).eps for dtype in (of_x, of_parameters, torch.float32)) * 4
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("eps", [0.0, -1.0, math.nan, math.inf])
def test_eps_is_checked(eps: float) -> None:
    with pytest.raises(ValueError, match=r"eps: got .*; expected a finite number > 0"):
        capped_batch_norm(torch.ones(3, 2), None, None, None, None, 1.0, training=True, eps=eps)
