"""In place on tensors that torch only marks as negated: ``z.conj().imag``, ``torch._neg_view(t)``.

Torch's rule for operators that write expects them to return what they wrote, and wrote over other memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dreluop
from dreluop import capped_relu, use_backend
from dreluop.ops.schemas import FUSED, IN_PLACE, OVERLOADS, overload

OFF, INSIDE, CAPPED = -0.25, 0.25, 2.0
CAP = 0.5


def negated(values: Tensor) -> Tensor:
    """The same values, marked as negated, in every second element of a memory."""
    result = torch.complex(torch.zeros_like(values), -values).conj().imag
    assert result.is_neg()
    assert torch.equal(result.resolve_neg(), values)
    return result


def x_of_4_by_5() -> Tensor:
    return torch.tensor([OFF, INSIDE, CAPPED, INSIDE, OFF]).repeat(4, 1)


def expected(t: Tensor) -> Tensor:
    return t.minimum(torch.tensor(CAP)).clamp(min=0)


FORMS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "mask": lambda: {"save": "mask"},
    "balancer": lambda: {"balancer": 0.1},
    "bias": lambda: {"bias": torch.full((5,), 0.125)},
    "residual": lambda: {"residual": torch.full((4, 5), 0.125)},
    "all, negated": lambda: {
        "save": "mask",
        "balancer": 0.1,
        "bias": negated(torch.full((5,), 0.125)),
        "residual": negated(torch.full((4, 5), 0.125)),
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chosen", [None, "reference"])
@pytest.mark.parametrize("graph", [False, True], ids=["", "in_a_graph"])
@pytest.mark.usefixtures("both_nodes")
def test_writes_the_values_and_returns_x(form: str, chosen: Any, graph: bool) -> None:
    given = FORMS[form]()
    leaf = x_of_4_by_5().requires_grad_(graph)
    cap = torch.full((5,), CAP, requires_grad=graph)
    x = negated(leaf)
    total = (leaf + given.get("bias", 0) + given.get("residual", 0)).detach()
    with use_backend(chosen):
        result = capped_relu(x, cap, inplace=True, **given)
    y = result[0] if isinstance(result, tuple) else result
    assert y is x
    assert x.is_neg()
    assert torch.equal(x.detach().resolve_neg(), expected(total))
    if graph:
        g = torch.arange(20.0).reshape(4, 5) + 1
        dx, dcap = torch.autograd.grad(y, (leaf, cap), negated(g))
        assert torch.equal(dx, torch.where((total > 0) & (total < CAP), g, 0))
        assert torch.equal(dcap, torch.where(total >= CAP, g, 0).sum(0))


def test_the_memory_around_stays_as_it_is() -> None:
    values = torch.randn(64)
    x = torch.view_as_complex(values[16:56].view(4, 5, 2)).conj().imag
    wanted = values.clone()
    wanted[17:56:2] = -expected(-wanted[17:56:2])
    capped_relu(x, CAP, inplace=True)
    assert torch.equal(values, wanted)


@pytest.mark.parametrize("which", [*OVERLOADS[:2], FUSED])
def test_operators_called_directly_write_and_count_the_write(which: str) -> None:
    for name in IN_PLACE if which != FUSED else ("capped_relu_",):
        operator, _, of = overload(name, which).partition(".")
        arguments = (1,) if name == "capped_relu_" else (1, True, 0.5)
        x = negated(x_of_4_by_5())
        before = x._version
        result = getattr(getattr(torch.ops.dreluop, operator), of or "default")(x, torch.full((5,), CAP), *arguments)
        assert torch.equal(x.resolve_neg(), expected(x_of_4_by_5()))
        assert x._version > before
        if name == "capped_relu_with_aux_":
            mask, penalty = result
            assert mask.tolist() == [0b01_10_01_00, 0b10_01_00_00, 0b01_00_00_01, 0b00_00_01_10, 0b00_01_10_01]
            assert penalty.item() == pytest.approx(0.5 * 5 * CAP**2)


@pytest.mark.parametrize("layout", ["dense", "permuted"])
def test_mask_of_other_layouts(layout: str) -> None:
    values = torch.randn(3, 4, 5)
    x = torch._neg_view(-values) if layout == "dense" else negated(values.permute(2, 0, 1)).permute(1, 2, 0)
    cap = torch.full((4,), CAP, requires_grad=True)
    g = torch.randn(3, 4, 5)
    y = capped_relu(x.detach(), cap, inplace=True, save="mask")
    (dcap,) = torch.autograd.grad(y, cap, g)
    assert torch.equal(y.detach().resolve_neg(), expected(values))
    torch.testing.assert_close(dcap, torch.where(values >= CAP, g, 0).sum((0, 2)))


@pytest.mark.parametrize("where", ["cap", "bias", "residual", "gradient"])
def test_only_another_argument_is_negated(where: str) -> None:
    def mark(name: str, value: Tensor) -> Tensor:
        return negated(value) if name == where else value

    leaf = x_of_4_by_5().requires_grad_()
    x, g = leaf * 1, torch.arange(20.0).reshape(4, 5)
    cap = mark("cap", torch.full((5,), CAP))
    bias, residual = mark("bias", torch.full((5,), 0.125)), mark("residual", torch.full((4, 5), 0.125))
    y = capped_relu(x, cap, inplace=True, bias=bias, residual=residual)
    y.backward(mark("gradient", g))
    total = leaf.detach() + 0.25
    assert torch.equal(y.detach(), expected(total))
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.where((total > 0) & (total < CAP), g, 0))


def test_a_cap_of_lazy_zeros_gives_zeros() -> None:
    x = negated(x_of_4_by_5())
    capped_relu(x, torch._efficientzerotensor(5), inplace=True)
    assert torch.equal(x.resolve_neg(), torch.zeros(4, 5))


def test_lazy_zeros_in_place_are_refused_as_by_relu() -> None:
    for write in (torch.relu_, lambda x: capped_relu(x, CAP, inplace=True)):
        with pytest.raises(RuntimeError, match="ZeroTensors are immutable"):
            write(torch._efficientzerotensor(4, 5))


def test_several_elements_at_one_address_are_refused() -> None:
    x = negated(torch.randn(4, 1)).expand(4, 5)
    before = x.resolve_neg().clone()
    with pytest.raises(ValueError, match="inplace: x of shape"):
        capped_relu(x, CAP, inplace=True)
    assert torch.equal(x.resolve_neg(), before)


@pytest.mark.parametrize("form", ["decompose", "opaque"])
@pytest.mark.parametrize("marked", ["inside", "input"])
def test_compiled(form: Any, marked: str) -> None:
    def function(t: Tensor) -> Tensor:
        x = torch._neg_view(t * -1) if marked == "inside" else t
        return capped_relu(x, torch.full((5,), CAP), inplace=True)

    x = x_of_4_by_5() if marked == "inside" else negated(x_of_4_by_5())
    with dreluop.compile_mode(form):
        y = torch.compile(function, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(y.resolve_neg(), expected(x_of_4_by_5()))
    if marked == "input":
        assert torch.equal(x.resolve_neg(), expected(x_of_4_by_5()))
