"""The operators as aten operators: what they compute, that nothing of ours is left, and what they may change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import dreluop
from dreluop.ops import decompositions, schemas
from tests.support import oracle
from tests.support.cases import CASES, DTYPES, FEW_CASES, MIXED_DTYPES, Case, dtype_id, mixed_id, special_values

ops = torch.ops.dreluop
TABLE = decompositions()
forward, backward, tangent = (
    TABLE[getattr(ops, name).default] for name in ("capped_relu", "capped_relu_backward", "capped_relu_jvp")
)


def test_the_table_has_every_operator_that_does_not_write_over_x() -> None:
    functional = [name for name in schemas.SCHEMAS if name not in schemas.IN_PLACE]
    expected = {
        getattr(getattr(ops, name), which or "default") for name in functional for which in ("", "reference", "triton")
    }
    assert expected <= TABLE.keys()
    assert not {op for op in TABLE if op._schema.is_mutable}
    assert decompositions() is not TABLE


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_those_of_the_rule(case: Case, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    grad = case.grad(dtype)
    y = forward(x, cap, case.dim)
    oracle.assert_same_bits(y, oracle.forward(x, cap, case.dim))
    dx, dcap, _ = backward(grad, y, cap, case.dim, [], True, True, None, None)
    oracle.assert_same_bits(dx, oracle.grad_x(grad, x, cap, case.dim))
    oracle.assert_grad_cap(dcap, grad, x, cap, case.dim)
    oracle.assert_same_bits(tangent(grad, cap, y, cap, case.dim, []), oracle.tangent(grad, cap, x, cap, case.dim))


@pytest.mark.parametrize("dtypes", MIXED_DTYPES, ids=mixed_id)
def test_special_values_and_mixed_dtypes(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    cap = special_values(dtypes[1])
    x = special_values(dtypes[0]).repeat_interleave(len(cap)).view(-1, len(cap))
    y = forward(x, cap)
    oracle.assert_same_bits(y, oracle.forward(x, cap))
    grad = torch.linspace(-1, 1, x.numel()).view_as(x).to(dtypes[0])
    oracle.assert_same_bits(backward(grad, y, cap, 1, [], True, True, None, None)[0], oracle.grad_x(grad, x, cap))


def every_operator(x: Tensor, cap: Tensor, grad: Tensor, dim: int, bias: Tensor, order: list[int]) -> list[Any]:
    y, mask, penalty = ops.capped_relu_with_aux(x, cap, dim, True, 0.5, bias, x)
    results = [y, mask, penalty, ops.capped_relu(x, cap, dim, bias, x)]
    for saved in (y, mask):
        results += ops.capped_relu_backward(grad, saved, cap, dim, order, True, True, 0.5, penalty, bias)
        results += [
            ops.capped_relu_jvp(grad, cap, saved, cap, dim, order),
            ops.capped_relu_surrogate_backward(grad, saved, cap, dim, order),
        ]
    results += [ops.capped_relu_surrogate_backward(grad, x, cap, dim, order, cap), ops.cap_penalty([cap, cap], 0.5)]
    return [*results, *ops.cap_penalty_backward(penalty, [cap, cap], 0.5), *ops.cap_saturation(x, cap, dim)]


@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_a_traced_graph_has_no_operator_of_ours_and_writes_nothing(case: Case) -> None:
    x, cap = case.inputs(torch.float32)
    grad, bias = case.grad(torch.float32), torch.linspace(-1, 1, x.shape[case.dim] if x.ndim > 1 else 1)
    if cap.ndim > 1:
        bias = torch.linspace(-1, 1, cap.numel()).view(cap.shape)
    dim = case.dim if x.ndim > 1 else 0
    if x.ndim == 1:
        bias = torch.linspace(-1, 1, x.shape[0])
    arguments = (x, cap, grad, dim, bias, oracle.mask_order(ops.capped_relu(x, cap, dim), cap))
    graph = make_fx(every_operator, decomposition_table=TABLE)(*arguments)
    calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert not [target for target in calls if getattr(target, "namespace", "") == "dreluop"]
    assert not [target for target in calls if hasattr(target, "_schema") and target._schema.is_mutable]
    for got, want in zip(graph(*arguments), every_operator(*arguments), strict=True):
        torch.testing.assert_close(got, want)


class Exported(nn.Module):
    """Every way to call the activation that a network has."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3)
        self.channel = dreluop.DReLU(6, init=0.4, inplace=True)
        self.neuron = dreluop.DReLU((6, 5, 5), init=0.3, save="mask")
        self.layer = dreluop.SReLU(0.2, inplace=True, save="mask")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.channel(self.convolution(x))
        hidden = self.neuron(hidden * 2, hidden, bias=self.neuron.cap)
        hidden, penalty = dreluop.capped_relu(hidden, self.channel.cap, inplace=True, balancer=0.5)
        counts = dreluop.saturation(hidden, self.channel.cap).inside
        return self.layer(hidden.flatten(1)), penalty + dreluop.cap_penalty(self, 0.1) + counts.sum()


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_an_exported_program_needs_no_operator_of_ours(backend: Any, strict: bool) -> None:
    model = Exported()
    batch = torch.export.Dim("batch", min=2)
    with dreluop.use_backend(backend):
        program = torch.export.export(model, (torch.randn(4, 3, 7, 7),), dynamic_shapes=({0: batch},), strict=strict)
    assert any("dreluop" in str(node.target) for node in program.graph.nodes)
    plain = program.run_decompositions({**torch.export.default_decompositions(), **decompositions()})
    assert not [node for node in plain.graph.nodes if "dreluop" in str(node.target)]
    for size in (4, 9):
        data = torch.randn(size, 3, 7, 7)
        for got, want in zip(plain.module()(data), model(data), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)
