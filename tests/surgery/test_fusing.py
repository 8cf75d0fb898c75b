"""Which residual sums become part of the activation, and what they compute then."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dreluop import DReLU
from dreluop.surgery import ResidualDReLU, replace_activations
from tests.surgery.helpers import d_relus, open_caps
from tests.surgery.models import (
    ResidualBlock,
)


class Sums(nn.Module):
    """Sums that may and may not be fused."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.shift = nn.Parameter(torch.ones(4, 1, 1))
        self.drop = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # noqa: PLR0911 (a case each)
        a, b = self.a(x), self.b(x)
        if self.kind == "add":
            return functional.relu(a + b, inplace=True)
        if self.kind == "operand_used_later":
            return functional.relu(a + b, inplace=True) * a
        if self.kind == "torch_add":
            return torch.relu(torch.add(a, b))
        if self.kind == "method":
            return a.add(b).relu()
        if self.kind == "used_twice":
            total = a + b
            return functional.relu(total) + total
        if self.kind == "alpha":
            return functional.relu(torch.add(a, b, alpha=2))
        if self.kind == "number":
            return functional.relu(a + 1)
        if self.kind == "parameter":
            return functional.relu(a + self.shift)
        if self.kind == "between":
            total = a + b
            b.mul_(2)
            return functional.relu(total) * b
        if self.kind == "input":
            x += a
            return functional.relu(x)
        if self.kind == "aliased":
            same = self.drop(a)
            same += b
            return functional.relu(same) * a
        assert self.kind == "broadcast"
        return functional.relu(a + b.mean((2, 3), keepdim=True))


SUMS = {
    "add": "", "operand_used_later": "",
    "torch_add": "", "method": "", "broadcast": "", "alpha": None, "number": None,
    "used_twice": "the sum has another user", "parameter": "an operand is a parameter or buffer",
    "between": "other operations run between the sum and the activation",
    "input": "the sum is written over a tensor that may be seen elsewhere",
    "aliased": "the sum is written over a tensor that may be seen elsewhere",
}  # fmt: skip


@pytest.mark.parametrize("kind", SUMS)
def test_fusing_sums(kind: str) -> None:
    original = Sums(kind)
    model = copy.deepcopy(original)
    # What comes in does not tell the channels of x += a.
    report = replace_activations(model, example_input=torch.randn(2, 4, 3, 3))
    (site,) = (site for site in report.sites if site.modes)
    reason = SUMS[kind]
    assert site.action == ("fused" if reason == "" else "replaced")
    assert site.reason == (f"not fused: {reason}" if reason else "")
    assert isinstance(d_relus(model)[site.name], ResidualDReLU) == (reason == "")
    open_caps(model, report)
    x = torch.randn(2, 4, 3, 3)
    mine, theirs = x.clone(), x.clone()
    assert torch.equal(model(mine), original(theirs))
    assert torch.equal(mine, theirs)
    assert (kind == "input") != torch.equal(mine, x)


class SumInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.a(x)
        if self.b is not None:
            x = self.b(x)
        out += x
        out = functional.relu(out)
        return out * x


def test_a_sum_in_place_over_what_a_layer_made_is_fused() -> None:
    original = SumInPlace()
    model = copy.deepcopy(original)
    report = replace_activations(model)
    (site,) = report.fused
    assert model.relu.sum_inplace
    open_caps(model, report)
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(model(x), original(x)), site
    # A later change of the code's other parts is followed.
    model.b = original.b = None
    assert torch.equal(model(x), original(x))


def test_fused_caps_and_gradients_are_those_of_the_sum() -> None:
    fused = ResidualBlock(6, 3, True).double()
    apart = copy.deepcopy(fused)
    assert [len(replace_activations(m, init=0.3, fuse=f).fused) for m, f in ((fused, True), (apart, False))] == [1, 0]
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    fused(x).square().sum().backward(), apart(x).square().sum().backward()
    for (name, one), other in zip(fused.named_parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    assert fused.relu_2.cap.dtype is torch.float64
    assert fused.relu_2.cap.grad.abs().sum() > 0


def test_autocast_where_the_two_operands_differ() -> None:
    model = ResidualBlock(6, 3, False)
    replace_activations(model, init=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, 6, 5, 5)).max() <= 0.5


class SumsUsed(nn.Module):
    """Sums that have another user, or whose bias_and_residual change before the activation runs."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.drop, self.other = nn.Linear(4, 4), nn.Dropout(), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.kind)(self.drop(self.a(x)), x)  # type: ignore[no-any-return]

    def on_one_line(self, a: Tensor, x: Tensor) -> Tensor:
        total = a + x; y = functional.relu(total); return y + total  # fmt: skip # noqa: E702 (the case)

    def in_finally(self, a: Tensor, x: Tensor) -> Tensor:
        try:
            total = a + x
            return functional.relu(total)
        finally:
            a.copy_(total)

    def by_locals(self, a: Tensor, x: Tensor) -> Tensor:
        total = a + x
        y = functional.relu(total)
        return y + locals()["total"]  # type: ignore[no-any-return]

    def changed_before(self, a: Tensor, x: Tensor) -> Tensor:
        total = a + x
        return torch.cat([a.mul_(2), functional.relu(total)], 1)

    def bound_before(self, a: Tensor, x: Tensor) -> Tensor:
        total = a + x
        return (a := a * 3) + functional.relu(total)

    def drawn_before(self, a: Tensor, x: Tensor) -> Tensor:
        total = self.drop(a) + x
        return self.other(x) * functional.relu(total)


@pytest.mark.parametrize("kind", [name for name in vars(SumsUsed) if not name.startswith("_") and name != "forward"])
def test_a_sum_that_something_else_sees_is_not_fused(kind: str) -> None:
    original = SumsUsed(kind)
    model = copy.deepcopy(original)
    report = replace_activations(model, granularity="layer")
    open_caps(model, report)
    outputs = []
    for one in (original, model):
        torch.manual_seed(1)
        outputs.append(one(torch.linspace(-1, 1, 12).view(3, 4)))
    assert torch.equal(*outputs)


class FunctionOfSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.a(x) + x)


@pytest.mark.parametrize("new", [nn.GELU(), nn.Identity(), DReLU(4, init=0.1)])
def test_what_is_set_in_place_of_a_fused_function_gets_the_sum(new: nn.Module) -> None:
    model = FunctionOfSum()
    assert replace_activations(model).fused
    model.relu = new
    x = torch.randn(3, 4)
    assert torch.equal(model(x), new(model.a(x) + x))
