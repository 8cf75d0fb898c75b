"""torch.compile and torch.export with sizes that they do not know: ``x[mask]``, ``nonzero``, ``mark_unbacked``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.config
from torch import Tensor, nn

import dreluop
from dreluop import DReLU, capped_relu
from tests.support import oracle

pytestmark = pytest.mark.usefixtures("fresh_compiler")

BATCH, CHANNELS, LENGTH = 6, 3, 4


@pytest.fixture(params=["opaque", "decompose"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """What the compiler is to see."""
    with dreluop.use_backend(None), dreluop.compile_mode(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def sizes_of_masks_are_traced() -> Iterator[None]:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        yield


# Shape and dim of a cap, and the shape in which it is compared.
CAPS: dict[str, tuple[tuple[int, ...], int, tuple[int, ...]]] = {
    "layer": ((), 1, ()),
    "channel": ((CHANNELS,), 1, (CHANNELS, 1)),
    "last": ((LENGTH,), -1, (LENGTH,)),
    "neuron": ((CHANNELS, LENGTH), 1, (CHANNELS, LENGTH)),
}
HOW: list[dict[str, Any]] = [
    {},
    {"inplace": True},
    {"save": "mask"},
    {"inplace": True, "balancer": 0.5, "bias_and_residual": True},
    {"save": "mask", "inplace": True, "bias_and_residual": True},
]
CALLS = [(name, how) for name in CAPS for how in HOW]


def leaves() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(BATCH, CHANNELS, LENGTH, generator=generator).requires_grad_() for _ in range(2))
    caps = [(torch.rand(CAPS[name][0], generator=generator) + 0.2).requires_grad_() for name, _ in CALLS]
    return [x, residual, *caps]


def bias_of(name: str) -> Tensor:
    shape, _, view = CAPS[name]
    return torch.linspace(-0.5, 0.5, max(1, torch.Size(view).numel())).reshape(shape or (1,)).expand(shape or CHANNELS)


def activated(tensors: list[Tensor]) -> list[Tensor]:
    """Every way to call the activation."""
    x, residual, *caps = tensors
    results: list[Tensor] = []
    for (name, how), cap in zip(CALLS, caps, strict=True):
        options = {key: value for key, value in how.items() if key != "bias_and_residual"}
        if "bias_and_residual" in how:
            options.update(bias=bias_of(name), residual=residual)
        t = x * 1 if "inplace" in how else x
        result = capped_relu(t, cap, dim=CAPS[name][1], **options)
        results += result if isinstance(result, tuple) else [result]
    return results


def expected(tensors: list[Tensor]) -> list[Tensor]:
    x, residual, *caps = tensors
    results: list[Tensor] = []
    for (name, how), cap in zip(CALLS, caps, strict=True):
        _, _, view = CAPS[name]
        t = x
        if how.get("bias_and_residual"):
            t = t + bias_of(name).reshape(view or (CHANNELS, 1)) + residual
        results.append(torch.minimum(t, cap.reshape(view)).relu())
        if "balancer" in how:
            results.append(how["balancer"] * cap.square().sum())
    return results


def gradients(results: list[Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(sum((index + 1) * y.square().sum() for index, y in enumerate(results)), tensors)


@pytest.mark.parametrize("how", ["selected", "marked"])
@pytest.mark.usefixtures("form")
def test_every_granularity_and_call(how: str) -> None:
    def selected(mask: Tensor, x: Tensor, residual: Tensor, *caps: Tensor) -> list[Tensor]:
        return activated([x[mask], residual[mask.nonzero()[:, 0]], *caps])

    def marked(_: Tensor, *tensors: Tensor) -> list[Tensor]:
        return activated(list(tensors))

    compiled = torch.compile({"selected": selected, "marked": marked}[how], backend="aot_eager", fullgraph=True)
    for size in (4, 1, 0) if how == "selected" else (BATCH,):
        mask = torch.arange(BATCH) < size
        tensors, others = leaves(), leaves()
        if how == "marked":
            for t in tensors[:2]:
                torch._dynamo.decorators.mark_unbacked(t, 0)
        got = compiled(mask, *tensors)
        want = expected([others[0][:size], others[1][:size], *others[2:]])
        for index, (one, other) in enumerate(zip(got, want, strict=True)):
            torch.testing.assert_close(one, other, msg=lambda text, index=index: f"result {index}: {text}")
        for one, other in zip(gradients(got, tensors), gradients(want, others), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("form")
def test_an_unknown_length_between_batch_and_channels() -> None:
    def function(x: Tensor, cap: Tensor) -> list[Tensor]:
        calls: list[dict[str, Any]] = [{}, {"inplace": True}, {"save": "mask"}]
        transposed = capped_relu((x * 1).transpose(1, 2), cap, dim=1, inplace=True).transpose(1, 2)
        return [*(capped_relu(x * 1, cap, dim=-1, **how) for how in calls), transposed]

    x, cap = torch.randn(2, 5, 3).requires_grad_(), torch.tensor([0.25, 0.5, 0.75]).requires_grad_()
    torch._dynamo.decorators.mark_unbacked(x, 1)
    results = torch.compile(function, backend="aot_eager", fullgraph=True)(x, cap)
    for y in results:
        oracle.assert_same_bits(y.detach(), oracle.forward(x.detach(), cap.detach(), -1))
    grad = torch.ones(2, 5, 3)
    dx, dcap = torch.autograd.grad(results, (x, cap), [grad] * len(results))
    oracle.assert_same_bits(dx, oracle.grad_x(len(results) * grad, x.detach(), cap.detach(), -1))
    oracle.assert_grad_cap(dcap, len(results) * grad, x.detach(), cap.detach(), -1)


def test_a_residual_of_another_size_is_found_when_the_program_runs() -> None:
    def function(x: Tensor, residual: Tensor, mask: Tensor, other: Tensor) -> Tensor:
        return capped_relu(x[mask], 0.5, residual=residual[other])

    x, residual = torch.randn(2, BATCH, CHANNELS).unbind()
    mask = torch.arange(BATCH) < 3
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    got = compiled(x, residual, mask, ~mask)
    torch.testing.assert_close(got, (x[:3] + residual[3:]).clamp(0, 0.5))
    with pytest.raises(RuntimeError, match="Runtime assertion failed"):
        compiled(x, residual, mask, mask | ~mask)


def test_over_an_expanded_tensor_of_unknown_size_is_refused() -> None:
    def function(x: Tensor, mask: Tensor) -> Tensor:
        return capped_relu(x[:1].expand(x[mask].shape), 0.5, inplace=True)

    with pytest.raises(Exception, match="has several elements at one address; use inplace=False"):
        torch.compile(function, backend="aot_eager", fullgraph=True)(torch.ones(5, 3), torch.arange(5) < 3)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)
        self.channels = DReLU(6, init=0.3, inplace=True)
        self.masked = DReLU(6, init=0.4, save="mask", inplace=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.channels(self.first(x[mask]))
        return self.masked(self.second(h), h, bias=self.masked.cap)


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_export(strict: bool) -> None:
    torch.manual_seed(0)
    model = Network()
    x, mask = torch.randn(BATCH, 4), torch.arange(BATCH) < 4
    program = torch.export.export(model, (x, mask), strict=strict)
    decomposed = program.run_decompositions(dreluop.ops.decompositions())
    for selected in (4, 2):
        mask = torch.arange(BATCH) < selected
        want = model(x, mask)
        grads = torch.autograd.grad(want.sum(), list(model.parameters()))
        for one in (program.module(), decomposed.module()):
            got = one(x, mask)
            torch.testing.assert_close(got, want)
            by_name = dict(one.named_parameters())
            again = torch.autograd.grad(got.sum(), [by_name[name] for name, _ in model.named_parameters()])
            torch.testing.assert_close(again, grads)
