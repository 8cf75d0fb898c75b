"""Compiled autograd traces the backward of every form, whose forward ran in eager mode, into one graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd

from dreluop import cap_penalty, capped_relu, use_backend
from dreluop.adaptive import surrogate_backward

Form = Callable[[Tensor, Tensor, Tensor, Tensor], Any]


def on_a_view(x: Tensor, cap: Tensor, **options: Any) -> Tensor:
    whole = x * 1
    capped_relu(whole[:, :3], cap[:3], inplace=True, **options)
    return whole


def everything(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Any:
    return capped_relu(x, cap, bias=bias, residual=residual, save="mask", balancer=0.1)


FORMS: dict[str, Form] = {
    "usual": lambda x, cap, bias, residual: capped_relu(x, cap),
    "mask": lambda x, cap, bias, residual: capped_relu(x, cap, save="mask"),
    "balancer": lambda x, cap, bias, residual: capped_relu(x, cap, balancer=0.1),
    "bias and residual": lambda x, cap, bias, residual: capped_relu(x, cap, bias=bias, residual=residual),
    "everything": everything,
    "zero above": lambda x, cap, bias, residual: capped_relu(x, cap, above="zero"),
    "zero above, everything": lambda x, cap, bias, residual: capped_relu(
        x, cap, bias=bias, residual=residual, balancer=0.1, above="zero", nan="zero"
    ),
    "in place on a view": lambda x, cap, bias, residual: on_a_view(x, cap),
    "in place on a view, mask": lambda x, cap, bias, residual: on_a_view(x, cap, save="mask"),
    "penalty": lambda x, cap, bias, residual: cap_penalty([cap, bias], 0.1) * x,
}
CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "reference": lambda: use_backend("reference"),
    "straight_through": lambda: surrogate_backward("straight_through"),
    "soft": lambda: surrogate_backward("soft"),
}


def gradients(form: Form, context: AbstractContextManager[Any], compiled: bool) -> list[Tensor | None]:
    torch.manual_seed(0)
    cap, bias = (torch.full((5,), value, requires_grad=True) for value in (0.5, 0.125))
    leaves = [torch.randn(4, 5, requires_grad=True), cap, bias, torch.randn(4, 5, requires_grad=True)]
    with context:
        result = form(*leaves)
    loss = sum((one.sin().sum() for one in (result if isinstance(result, tuple) else (result,))), torch.zeros(()))
    torch._dynamo.reset()
    # fullgraph: a graph break would run in eager mode what cannot be traced.
    compiler = torch.compile(backend="eager", fullgraph=True)
    with compiled_autograd._enable(compiler) if compiled else nullcontext():
        loss.backward()
    return [leaf.grad for leaf in leaves]


def check(form: Form, context: Callable[[], AbstractContextManager[Any]]) -> None:
    eager, compiled = (gradients(form, context(), traced) for traced in (False, True))
    assert eager[0] is not None
    assert eager[1] is not None
    for one, other in zip(eager, compiled, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(other, one)


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form: str) -> None:
    check(FORMS[form], nullcontext)


@pytest.mark.usefixtures("python_node")
def test_the_usual_call_by_python() -> None:
    check(FORMS["usual"], nullcontext)


@pytest.mark.parametrize("context", CONTEXTS)
def test_other_backends_and_surrogates(context: str) -> None:
    check(FORMS["everything"], CONTEXTS[context])
