"""The width of the soft surrogate, and the arguments of surrogate_backward."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dreluop
from dreluop.adaptive import measure_std, surrogate_backward
from dreluop.autograd import surrogate
from tests.support import oracle
from tests.support.cases import Case, dtype_id
from tests.support.surrogates import SOME_CASES, TAU, activation, exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("case", SOME_CASES, ids=str)
def test_the_standard_deviation_of_the_batch(case: Case, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    owner = oracle.spread(torch.arange(cap.numel()).reshape(cap.shape), x, case.dim)

    def expected_std(x: Tensor) -> Tensor:
        groups = [x.double()[owner == c].std(correction=0) for c in range(cap.numel())]
        return torch.stack(groups).reshape(cap.shape)

    # Far from zero, where a difference of squares would have nothing left.
    shifted = torch.empty_like(x).copy_(x + 100 * oracle.spread(torch.rand(cap.shape), x, case.dim))
    got = surrogate.batch_std(shifted, cap, case.dim)
    torch.testing.assert_close(got, expected_std(shifted).to(oracle.accumulator(x)), rtol=1e-4, atol=0)

    std, grad = expected_std(x), case.grad(dtype)
    x = torch.empty_like(x).copy_(x).requires_grad_()
    with surrogate_backward("soft", TAU):
        y = dreluop.capped_relu(x, cap, dim=case.dim)
    got = torch.autograd.grad(y, x, grad, retain_graph=True)[0]
    with surrogate_backward("soft", TAU, std={cap: std}):
        given = dreluop.capped_relu(x, cap, dim=case.dim)
    expected = torch.autograd.grad(given, x, grad)[0]
    torch.testing.assert_close(got, expected, rtol=3e-2, atol=1e-4)


def test_a_constant_cap_gets_the_width_of_the_others() -> None:
    x = torch.randn(50, 4)
    x[:, 1] = 0.1  # Whose mean in float32 is another number.
    x[:, 3] = 0.0
    std = surrogate.batch_std(x, torch.ones(4), 1)
    own = x[:, [0, 2]].std(0, correction=0)
    torch.testing.assert_close(std[[0, 2]], own)
    torch.testing.assert_close(std[[1, 3]], own.square().mean().sqrt().expand(2))


@pytest.mark.parametrize(
    ("x", "cap"),
    [
        (torch.randn(1, 3), torch.ones(3)),
        (torch.randn(1, 3, 4), torch.ones(3, 4)),
        (torch.full((8, 3), 0.1), torch.ones(())),
        (torch.full((8, 3), 0.1), torch.ones(3)),
        (torch.randn(()), torch.ones(())),
        (torch.randn(3), torch.ones(3)),
    ],
    ids=["one sample", "one sample, neuron", "constant", "constant channels", "scalar", "vector"],
)
def test_a_batch_without_a_standard_deviation_is_an_error(x: Tensor, cap: Tensor) -> None:
    x.requires_grad_()
    dim = 0 if x.ndim == 1 else 1
    with surrogate_backward("soft"), pytest.raises(ValueError, match=r"std: x of shape .* give std"):
        dreluop.capped_relu(x, cap, dim=dim)
    with surrogate_backward("soft", std=1.0):
        dreluop.capped_relu(x, cap, dim=dim).sum().backward()
    assert x.grad is not None


def test_a_recomputation_is_not_measured_again() -> None:
    shared = dreluop.DReLU(4, init=0.3)
    data = torch.randn(64, 4)

    def model(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            torch.utils.checkpoint.checkpoint(shared, x, use_reentrant=False).sum().backward()
        return shared(3 * x.detach())

    expected = data.std(0, correction=0) * math.sqrt((1 + 9) / 2)
    torch.testing.assert_close(measure_std(model, data)[shared.cap], expected)


def test_measured_standard_deviations() -> None:
    shared = dreluop.DReLU(4, init=0.3)
    model = nn.Sequential(nn.Linear(5, 4), shared, nn.Linear(4, 4), shared, dreluop.DReLU((4,), init=0.2))
    data, before = torch.randn(64, 5), shared.cap.detach().clone()
    model.train()
    found = measure_std(model, data)
    assert set(found) == {shared.cap, model[4].cap}
    first = model[0](data)
    second = model[2](shared(first))
    expected = torch.stack([t.std(0, correction=0) for t in (first, second)]).square().mean(0).sqrt()
    torch.testing.assert_close(found[shared.cap], expected.detach())
    assert torch.equal(shared.cap, before)
    assert model.training
    x = data[:1].clone().requires_grad_()
    with surrogate_backward("soft", std=found):
        gradient = torch.autograd.grad(model(x).sum(), x)[0]
    assert gradient.any()
    with surrogate_backward("soft", std={shared.cap: 1.0}), pytest.raises(ValueError, match="std: holds nothing for"):
        model(x)
    with pytest.raises(ValueError, match="model: a Linear called no capped activation"):
        measure_std(nn.Linear(5, 4), data)
    biased = dreluop.DReLU(4)
    residual, bias = torch.randn(64, 4), torch.randn(4)
    model = nn.Linear(5, 4)
    found = measure_std(lambda t: biased(model(t), residual, bias=bias), data)
    torch.testing.assert_close(found[biased.cap], (model(data) + bias + residual).std(0, correction=0).detach())
    assert exact(activation)


BAD: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "mode": (("hard",), {}, ValueError, "mode: got 'hard'; expected \"straight_through\" or \"soft\""),
    "tau_zero": (("soft", 0), {}, ValueError, "tau: got 0; expected a finite number > 0"),
    "tau_nan": (("soft", math.nan), {}, ValueError, "tau: got nan; expected a finite number > 0"),
    "tau_text": (("soft", "1"), {}, TypeError, "tau: got str; expected a number"),
    "tau_bool": (("soft", True), {}, TypeError, "tau: got bool; expected a number"),
    "std_of_the_other_form": ((), {"std": 1.0}, ValueError, 'std: got one for mode="straight_through"'),
    "std_negative": (("soft",), {"std": -1.0}, ValueError, "std: got -1.0; expected a finite number > 0"),
    "std_tensor": (("soft",), {"std": torch.ones(3)}, TypeError, "std: got Tensor of shape (3,)"),
    "std_key": (("soft",), {"std": {"a": 1.0}}, TypeError, "std: a cap: got str; expected a torch.Tensor"),
    "std_value": (("soft",), {"std": {torch.ones(3): "1"}}, TypeError, "std: got str; expected a number"),
    "std_shape": (
        ("soft",), {"std": {torch.ones(3): torch.ones(4)}}, ValueError, "std: got shape (4,); expected the cap's, (3,)",
    ),
    "std_zero": (
        ("soft",), {"std": {torch.ones(2): torch.tensor([1.0, 0.0])}}, ValueError,
        "std: got values that are not finite and > 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    arguments, keywords, error, message = BAD[name]
    with pytest.raises(error, match=re.escape(message)), surrogate_backward(*arguments, **keywords):
        raise AssertionError("entered")
    assert not surrogate.active


def test_bad_input_of_the_activation_keeps_its_message() -> None:
    with surrogate_backward(), pytest.raises(ValueError, match="cap: got shape"):
        dreluop.capped_relu(torch.ones(2, 3, requires_grad=True), torch.ones(4))
