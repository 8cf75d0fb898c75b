"""``above="zero"`` and ``nan="zero"`` through torch.compile, torch.export and ``torch.jit.trace``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dreluop
from tests.support import oracle
from tests.support.cases import special_values

pytestmark = pytest.mark.usefixtures("fresh_compiler")

FORMS: dict[str, dict[str, Any]] = {
    "above": {"above": "zero"},
    "nan": {"nan": "zero"},
    "both": {"above": "zero", "nan": "zero"},
}
by_form = pytest.mark.parametrize("form", FORMS)
by_mode = pytest.mark.parametrize("mode", ["opaque", "decompose"])
NUMBERS = {"above": oracle.ABOVE, "nan": oracle.NAN, "both": oracle.ABOVE | oracle.NAN}


@pytest.fixture(autouse=True)
def default_rule() -> Any:
    with dreluop.use_backend(None), dreluop.compile_mode("auto"):
        yield


def data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    values = special_values(dtype)
    cap = torch.cat([values, torch.linspace(0.3, 0.4, 7).to(dtype)])
    x = torch.cat([values, cap, torch.linspace(-1, 1, 21).to(dtype)])
    return x.unsqueeze(1).expand(-1, len(cap)).contiguous(), cap


@by_form
@by_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_inductor(device: torch.device, mode: Any, form: str, dtype: torch.dtype) -> None:
    x, cap = data(dtype)
    grad = torch.linspace(-1, 1, x.numel()).view_as(x).to(dtype)
    leaves = [t.to(device).requires_grad_() for t in (x, cap)]
    with dreluop.compile_mode(mode):
        y = torch.compile(lambda x, cap: dreluop.capped_relu(x, cap, **FORMS[form]), fullgraph=True)(*leaves)
        y.backward(grad.to(device))
    zeroed = NUMBERS[form]
    oracle.assert_same_bits(y.cpu(), oracle.forward(x, cap, 1, zeroed))
    oracle.assert_same_bits(leaves[0].grad.cpu(), oracle.grad_x(grad, x, cap, 1, zeroed))
    oracle.assert_grad_cap(leaves[1].grad.cpu(), grad, x, cap, 1, zeroed)


@by_mode
@pytest.mark.parametrize(("dtype", "little"), [(torch.bfloat16, 0.0019), (torch.float16, 0.0002)], ids=str)
@pytest.mark.parametrize("reached", ["cap", "residual", "bias", "before"])
def test_what_reaches_its_cap_by_a_rounding_stays(mode: Any, dtype: torch.dtype, little: float, reached: str) -> None:
    x = torch.ones(4, 4, dtype=dtype, requires_grad=True)
    cap = torch.full((4,), 1 - little if reached == "cap" else 1.0)
    more = torch.full((4, 4), little, dtype=dtype)
    options: dict[str, Any] = {"residual": more} if reached == "residual" else {}
    options |= {"bias": torch.full((4,), little)} if reached == "bias" else {}

    def call(x: Tensor) -> Tensor:
        return dreluop.capped_relu(x + more if reached == "before" else x, cap, above="zero", **options)

    with dreluop.compile_mode(mode):
        y = torch.compile(call, fullgraph=True)(x)
    y.backward(torch.ones_like(y))
    assert (y == 1).all() and (x.grad == 1).all()


OPTIONS: dict[str, dict[str, Any]] = {
    "output": {},
    "mask": {"save": "mask"},
    "in place": {"inplace": True},
    "in place, mask": {"inplace": True, "save": "mask"},
    "penalty": {"balancer": 0.5},
}


@by_form
@by_mode
@pytest.mark.parametrize("options", OPTIONS)
def test_values_and_gradients_are_those_of_eager_mode(mode: Any, form: str, options: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(6, 5, generator=generator) * 2 for _ in range(2)]
    tensors += [torch.rand(5, generator=generator) + 0.5, torch.randn(5, generator=generator)]

    def function(x: Tensor, residual: Tensor, cap: Tensor, bias: Tensor) -> Tensor:
        result = dreluop.capped_relu(x * 1, cap, residual=residual, bias=bias, **OPTIONS[options], **FORMS[form])
        y, penalty = result if isinstance(result, tuple) else (result, 0)
        return y.square().sum() + penalty

    results = []
    for call in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        leaves = [t.clone().requires_grad_() for t in tensors]
        with dreluop.compile_mode(mode):
            loss = call(*leaves)
            results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(*results)


@by_form
@by_mode
def test_transforms_inside_what_is_compiled(mode: Any, form: str) -> None:
    arguments = torch.randn(6, 3), torch.tensor(0.7)

    def f(x: Tensor, cap: Tensor) -> Tensor:
        return dreluop.capped_relu(x, cap, **FORMS[form])

    for function in (
        torch.func.grad(lambda x, cap: (f(x, cap) ** 3).sum(), (0, 1)),
        torch.vmap(f, (0, None)),
        lambda x, cap: torch.func.jvp(f, (x, cap), (x.cos(), cap.sin())),
    ):
        with dreluop.compile_mode(mode):
            got = torch.compile(function, backend="aot_eager", fullgraph=True)(*arguments)
        torch.testing.assert_close(got, function(*arguments))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = dreluop.SReLU(torch.tensor([0.5, 1.0, torch.inf]), above="zero", nan="zero", inplace=True)
        self.second = dreluop.DReLU(3, 0.8, above="zero", save="mask")
        self.third = dreluop.DReLU(init=0.7, nan="zero")

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x * 1) * 1.5, x))


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_exported_programs_with_and_without_operators(strict: bool) -> None:
    model, x = Network().eval().requires_grad_(False), torch.randn(7, 3)
    x[0, 0], x[1, 1], x[2, 2] = torch.inf, torch.nan, -torch.inf
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=strict)
    want = model(x)
    oracle.assert_same_bits(program.module()(x), want)
    plain = program.run_decompositions({**torch.export.default_decompositions(), **dreluop.ops.decompositions()})
    assert not any("dreluop" in str(node.target) for node in plain.graph.nodes)
    oracle.assert_same_bits(plain.module()(x[:4]), want[:4])


def test_torchscript_traces_keep_the_form() -> None:
    model, x = Network().eval().requires_grad_(False), torch.randn(7, 3) * 2
    traced = torch.jit.trace(model, (x,))
    oracle.assert_same_bits(traced(x + 0.1), model(x + 0.1))
