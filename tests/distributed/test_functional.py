"""The public functions with DTensors: gradients as in one process, or an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import (
    DeviceMesh,
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)

import dreluop
from tests.distributed.processes import on_processes
from tests.distributed.tensors import full_tensor, integers, mesh_of, needs_in_place, placed

BALANCER = 0.25
X = (8, 6, 4)
CAPS = {"layer": (1,), "channel": (6,), "neuron": (6, 4)}
# Of x, and of the caps where a dimension of theirs follows: on a mesh of one dimension.
PLACEMENTS: list[tuple[Placement, dict[str, Placement]]] = [
    (Replicate(), {}),
    (Shard(0), {}),
    (Shard(1), {"channel": Shard(0), "neuron": Shard(0)}),
    (Shard(2), {"neuron": Shard(1)}),
    # The cap lies otherwise than x would have it.
    (Shard(0), {"channel": Shard(0), "neuron": Shard(1)}),
    (Replicate(), {"channel": Shard(0), "neuron": Shard(0)}),
]

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _output(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return dreluop.capped_relu(x, cap)


def _in_place(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return dreluop.capped_relu(x * 1, cap, inplace=True)


def _mask(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return dreluop.capped_relu(x, cap, save="mask", bias=_bias_for(cap, bias), residual=residual)


def _bias_and_residual(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return dreluop.capped_relu(x, cap, bias=_bias_for(cap, bias), residual=residual)


def _zero_above(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor, **options: Any) -> Tensor:
    return dreluop.capped_relu(x, cap, residual=residual, above="zero", nan="zero", **options)


def _bias_for(cap: Tensor, bias: Tensor) -> Tensor:
    return cap * 0.5 if cap.ndim > 1 else bias


def _weighted(y: Tensor) -> Tensor:
    # Not 1: what goes back must differ from element to element.
    return (y * y).sum()


PLAIN: dict[str, Loss] = {
    "output": lambda *args: _weighted(_output(*args)),
    "in-place": lambda *args: _weighted(_in_place(*args)),
    "mask": lambda *args: _weighted(_mask(*args)),
    "bias_and_residual": lambda *args: _weighted(_bias_and_residual(*args)),
    "zero_above": lambda *args: _weighted(_zero_above(*args)),
    "zero_above-mask": lambda *args: _weighted(_zero_above(*args, save="mask")),
    "zero_above-in-place": lambda *args: _weighted(_zero_above(args[0] * 1, *args[1:], inplace=True)),
}


def _fused(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    y, penalty = dreluop.capped_relu(x, cap, balancer=BALANCER)
    return _weighted(y) + 3 * penalty


def _fused_in_place(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    y, penalty = dreluop.capped_relu(x * 1, cap, inplace=True, balancer=BALANCER, residual=residual)
    return _weighted(y) + 3 * penalty


def _fused_with_mask(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    y, penalty = dreluop.capped_relu(x, cap, save="mask", balancer=BALANCER)
    return _weighted(y) + 3 * penalty


def _beside(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return _weighted(_output(x, cap, bias, residual)) + 3 * dreluop.cap_penalty(cap, BALANCER)


def _second_order(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    y, penalty = dreluop.capped_relu(x, cap, balancer=BALANCER)
    dx, dcap = torch.autograd.grad(_weighted(y) + penalty, (x, cap), create_graph=True)
    return (dx * dx).sum() + (dcap * dcap).sum()


def _second_order_of_cap(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    (dcap,) = torch.autograd.grad(_weighted(_output(x, cap, bias, residual)), cap, create_graph=True)
    return (dcap * dcap).sum()


def _straight_through(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    with dreluop.adaptive.surrogate_backward():
        return _weighted(dreluop.capped_relu(x, cap, residual=residual))


LOSSES: dict[str, Loss] = PLAIN | {
    "fused": _fused,
    "fused-in-place": _fused_in_place,
    "fused-with-mask": _fused_with_mask,
    "beside": _beside,
    "second-order": _second_order,
    "second-order-of-cap": _second_order_of_cap,
    "straight-through": _straight_through,
}


def _gradients(loss: Loss, tensors: list[Tensor]) -> list[Any]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    value = loss(*leaves)
    value.backward()
    return full_tensor(
        [value.detach(), *(leaf.grad if leaf.grad is not None else leaf.detach() * 0 for leaf in leaves)]
    )


@on_processes(2)
@pytest.mark.parametrize("granularity", CAPS)
@pytest.mark.parametrize(
    "loss", [pytest.param(name, marks=needs_in_place) if "in-place" in name else name for name in LOSSES]
)
def test_gradients_are_those_of_one_process(loss: str, granularity: str) -> None:
    mesh = mesh_of()
    tensors = [integers(*X), integers(*CAPS[granularity], low=-1, high=4), integers(6), integers(*X)]
    want = _gradients(LOSSES[loss], tensors)
    for of_x, of_caps in PLACEMENTS:
        placements = [of_x, of_caps.get(granularity, Replicate()), Replicate(), of_x]
        sharded = [placed(t, mesh, [placement]) for t, placement in zip(tensors, placements, strict=True)]
        got = _gradients(LOSSES[loss], sharded)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@on_processes(4)
@pytest.mark.parametrize("loss", ("output", "mask", "fused", "second-order"))
def test_gradients_on_a_mesh_of_two_dimensions(loss: str) -> None:
    mesh = mesh_of()
    tensors = [integers(*X), integers(6, low=-1, high=4), integers(6), integers(*X)]
    want = _gradients(LOSSES[loss], tensors)
    whole_and = (Replicate(), Replicate())
    for of_x, of_cap in (((Shard(0), Shard(1)), (Replicate(), Shard(0))), ((Shard(0), Shard(0)), whole_and)):
        placements = [of_x, of_cap, whole_and, of_x]
        sharded = [placed(t, mesh, p) for t, p in zip(tensors, placements, strict=True)]
        for one, other in zip(_gradients(LOSSES[loss], sharded), want, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@on_processes(2)
def test_the_gradient_of_a_whole_cap_is_in_parts_until_it_is_needed() -> None:
    mesh = mesh_of()
    cap = placed(integers(6, low=1), mesh, [Replicate()]).requires_grad_()
    y, penalty = dreluop.capped_relu(placed(integers(8, 6), mesh, [Shard(0)]), cap, balancer=BALANCER)
    assert penalty.placements == (Replicate(),)
    (y.sum() + penalty).backward()
    assert cap.grad.placements == (Partial(),)


@on_processes(2)
@pytest.mark.parametrize("granularity", CAPS)
def test_smoothed_activations(granularity: str) -> None:
    mesh = mesh_of()
    x, cap = torch.randn(X), torch.rand(CAPS[granularity]) + 0.5
    # The caps of a constant take the others' standard deviation, which other processes may hold.
    x[:, :3] = 0.5

    def soft(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        with dreluop.adaptive.surrogate_backward("soft"):
            return _weighted(dreluop.capped_relu(x, cap, save="mask"))

    def smooth(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        with dreluop.adaptive.smooth_forward():
            return _weighted(dreluop.capped_relu(x, cap, residual=residual))

    tensors = [x, cap, integers(6), integers(*X)]
    for form in (soft, smooth):
        want = _gradients(form, tensors)
        for of_x, of_caps in PLACEMENTS:
            placements = [of_x, of_caps.get(granularity, Replicate()), Replicate(), of_x]
            sharded = [placed(t, mesh, [placement]) for t, placement in zip(tensors, placements, strict=True)]
            for one, other in zip(_gradients(form, sharded), want, strict=True):
                torch.testing.assert_close(one, other)


@on_processes(2)
def test_uneven_shards_with_mask() -> None:
    mesh = mesh_of()
    x, cap = integers(5, 7), integers(7, low=1, high=4)
    want = _gradients(lambda x, cap: _weighted(dreluop.capped_relu(x, cap, save="mask")), [x, cap])
    for placements in ((Shard(0), Replicate()), (Shard(1), Shard(0))):
        sharded = [placed(t, mesh, [p]) for t, p in zip((x, cap), placements, strict=True)]
        got = _gradients(lambda x, cap: _weighted(dreluop.capped_relu(x, cap, save="mask")), sharded)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@on_processes(2)
def test_a_constant_cap() -> None:
    mesh = mesh_of()
    x = integers(8, 6)
    sharded = placed(x, mesh, [Shard(0)])
    module = dreluop.SReLU(2.0)
    assert torch.equal(module(sharded).full_tensor(), x.clamp(0, 2))
    assert torch.equal(dreluop.capped_relu(sharded, 2.0).full_tensor(), x.clamp(0, 2))
    assert int(dreluop.saturation(sharded, 2.0).capped.full_tensor()) == int((x >= 2).sum())


@on_processes(2)
def test_saturation_of_a_module() -> None:
    mesh = mesh_of()
    x = integers(8, 6)
    module = distribute_module(dreluop.DReLU(6, init=2.0), mesh)
    for placement in (Shard(0), Shard(1), Replicate()):
        got = dreluop.saturation(placed(x, mesh, [placement]), module.cap)
        for one, other in zip(got, dreluop.saturation(x, torch.full((6,), 2.0)), strict=True):
            assert torch.equal(one.full_tensor(), other)


@on_processes(2)
def test_an_optimizer_takes_a_partial_gradient_whole() -> None:
    mesh = mesh_of()
    x = integers(8, 6)
    plain = dreluop.DReLU(6, init=2.0)
    sharded = distribute_module(dreluop.DReLU(6, init=2.0), mesh)
    for module, data in ((plain, x), (sharded, placed(x, mesh, [Shard(0)]))):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.125)
        (module(data).sum() + dreluop.cap_penalty(module, BALANCER)).backward()
        optimizer.step()
    assert torch.equal(sharded.cap.full_tensor(), plain.cap)


@on_processes(2)
def test_the_penalty_of_ordinary_and_sharded_caps() -> None:
    mesh, other = mesh_of(), mesh_of(2, 1)
    values = [integers(6, low=1) for _ in range(4)]
    caps = [
        values[0].clone(),
        distribute_tensor(values[1], mesh, [Shard(0)], src_data_rank=None),
        distribute_tensor(values[2], other, [Shard(0), Replicate()], src_data_rank=None),
        distribute_tensor(values[3].double(), mesh, [Replicate()], src_data_rank=None),
    ]
    for cap in caps:
        cap.requires_grad_()
    penalty = dreluop.cap_penalty(caps, BALANCER)
    assert type(penalty) is Tensor
    assert penalty.dtype == torch.float64
    assert penalty.item() == dreluop.cap_penalty(values, BALANCER).item()
    penalty.backward()
    for cap, value in zip(caps, values, strict=True):
        assert torch.equal(full_tensor(cap.grad), (2 * BALANCER * value).to(cap.dtype))


def _mixed_up(mesh: DeviceMesh) -> dict[str, tuple[type[Exception], str, Callable[[], Any]]]:
    x, cap = torch.rand(8, 6), torch.ones(6, requires_grad=True)
    sharded_x, sharded_cap = distribute_tensor(x, mesh, [Shard(0)]), distribute_tensor(cap, mesh, [Replicate()])
    learned = torch.ones(1, requires_grad=True)
    other = DeviceMesh("cpu", [1, 0])
    elsewhere = distribute_tensor(cap, other, [Replicate()], src_data_rank=None)
    partial = DTensor.from_local(x, mesh, [Partial()])
    return {
        "cap": (TypeError, "cap: got an ordinary tensor", lambda: dreluop.capped_relu(sharded_x, cap)),
        "cap of one": (TypeError, "cap: got an ordinary tensor", lambda: dreluop.capped_relu(sharded_x, learned)),
        "x": (TypeError, "cap: got a DTensor where x is an ordinary", lambda: dreluop.capped_relu(x, sharded_cap)),
        "bias": (
            TypeError,
            "bias: got an ordinary tensor",
            lambda: dreluop.capped_relu(sharded_x, sharded_cap, bias=cap),
        ),
        "residual": (
            TypeError,
            "residual: got a DTensor",
            lambda: dreluop.capped_relu(x, cap, residual=sharded_x),
        ),
        "mesh": (ValueError, "cap: got a DTensor on", lambda: dreluop.capped_relu(sharded_x, elsewhere)),
        "saturation": (TypeError, "cap: got an ordinary tensor", lambda: dreluop.saturation(sharded_x, cap)),
        "mask in place": (
            ValueError,
            "save: got",
            lambda: dreluop.capped_relu(sharded_x * 1, sharded_cap, save="mask", inplace=True),
        ),
        "partial in place": (
            RuntimeError,
            "inplace: got x with the placements",
            lambda: dreluop.capped_relu(partial, sharded_cap.detach(), inplace=True),
        ),
        "mask of an operator": (
            RuntimeError,
            "mask: got x with the placements",
            lambda: torch.ops.dreluop.capped_relu_with_aux(sharded_x, sharded_cap.detach(), 1, True, None),
        ),
    }


@on_processes(2)
def test_what_cannot_work_is_refused() -> None:
    for name, (error, message, call) in _mixed_up(mesh_of()).items():
        try:
            call()
        except error as raised:
            assert message.replace("\\", "") in str(raised), f"{name}: {raised}"
        else:
            raise AssertionError(f"{name}: no error")
