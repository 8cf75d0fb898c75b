"""Every operator on DTensors of every placement gives what it gives on the whole tensors."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode

import dreluop
from dreluop.backends import selection
from dreluop.ops import schemas
from tests.distributed.processes import on_processes
from tests.distributed.tensors import full_tensor, integers, mesh_of, needs_in_place, placed
from tests.support.oracle import assert_same_bits

BALANCER = 0.25
# Of the placements on a mesh of two dimensions.
SAMPLE = 8


@dataclass(frozen=True)
class Case:
    x: tuple[int, ...]
    cap: tuple[int, ...]
    dim: int = 1


CASES = {
    "layer": Case((8, 6, 4), ()),
    "layer-one-dimension": Case((4, 6), (1,)),
    "channel": Case((4, 6, 2, 2), (6,)),
    "channel-last": Case((4, 2, 6), (6,), -1),
    "channel-first": Case((4, 6), (4,), 0),
    "neuron": Case((4, 6, 4), (6, 4)),
    "uneven": Case((5, 7), (7,)),
    "fewer-than-processes": Case((1, 3, 1), (3, 1)),
}


def placements_of(ndim: int, mesh: DeviceMesh, partial: bool = True) -> list[tuple[Placement, ...]]:
    along_one = [Replicate(), *map(Shard, range(ndim)), *([Partial()] if partial else [])]
    return list(itertools.product(along_one, repeat=mesh.ndim))


def combinations(case: Case, mesh: DeviceMesh) -> list[tuple[Any, Any]]:
    every = list(itertools.product(placements_of(len(case.x), mesh), placements_of(len(case.cap), mesh)))
    return every if mesh.ndim == 1 else random.Random(0).sample(every, min(SAMPLE, len(every)))


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    x, cap = integers(*case.x), integers(*case.cap, low=-1, high=4)
    if x.numel() > 8:
        x.view(-1)[5] = torch.nan
    return x, cap


def compare(name: str, which: str, arguments: tuple[Any, ...], sharded: tuple[Any, ...], exact: bool = True) -> None:
    operator = getattr(selection.operators_of(which), name)
    got, want = full_tensor(operator(*sharded)), operator(*arguments)
    tensors = (got, want) if isinstance(want, list | tuple) else ([got], [want])
    for one, other in zip(*tensors, strict=True):
        if exact:
            assert_same_bits(one, other)
        else:
            torch.testing.assert_close(one, other, equal_nan=True)


@on_processes(2, 4)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_forward_and_statistics(case: Case) -> None:
    mesh = mesh_of()
    x, cap = inputs(case)
    residual, bias = integers(*case.x), integers(*(case.cap if len(case.cap) > 1 else (case.x[case.dim],)))
    for of_x, of_cap in combinations(case, mesh):
        sharded_x, sharded_cap = placed(x, mesh, of_x), placed(cap, mesh, of_cap)
        of_bias = [p if p == Shard(0) else Replicate() for p in of_cap]
        bias_and_residual = placed(bias, mesh, of_bias), placed(residual, mesh, of_x[::-1])
        compare("capped_relu", "native", (x, cap, case.dim), (sharded_x, sharded_cap, case.dim))
        compare(
            "capped_relu",
            "native",
            (x, cap, case.dim, bias, residual),
            (sharded_x, sharded_cap, case.dim, *bias_and_residual),
        )
        compare("cap_saturation", "native", (x, cap, case.dim), (sharded_x, sharded_cap, case.dim))
        for balancer in (BALANCER, None):
            compare(
                "capped_relu_with_aux",
                "reference",
                (x, cap, case.dim, False, balancer, None, residual),
                (sharded_x, sharded_cap, case.dim, False, balancer, None, bias_and_residual[1]),
            )


@on_processes(2, 4)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_derivatives(case: Case) -> None:
    mesh = mesh_of()
    x, cap = inputs(case)
    y = dreluop.capped_relu(x, cap, dim=case.dim)
    grad, v = integers(*case.x), integers(*case.cap)
    grad.view(-1)[0] = torch.inf
    bias = torch.zeros(case.cap if len(case.cap) > 1 else (case.x[case.dim],))
    grad_penalty = torch.tensor(3.0)
    for index, (of_x, of_cap) in enumerate(combinations(case, mesh)):
        # What has x's shape need not lie like x: DTensor moves it.
        others = placements_of(len(case.x), mesh, partial=False)
        of_y = others[index % len(others)]
        of_scalar = placements_of(0, mesh)[index % 2**mesh.ndim]
        sharded_y, sharded_cap = placed(y, mesh, of_y), placed(cap, mesh, of_cap)
        sharded_grad = placed(grad, mesh, of_x)
        sharded_penalty = placed(grad_penalty, mesh, of_scalar)
        sharded_bias = placed(bias, mesh, [Replicate()] * mesh.ndim)
        for need_x, need_cap, balancer in ((True, True, BALANCER), (False, True, None), (True, False, BALANCER)):
            rest = (case.dim, (), need_x, need_cap, balancer)
            compare(
                "capped_relu_backward",
                "native",
                (grad, y, cap, *rest, grad_penalty, bias),
                (sharded_grad, sharded_y, sharded_cap, *rest, sharded_penalty, sharded_bias),
            )
        sharded_v = placed(v, mesh, of_cap)
        compare(
            "capped_relu_jvp",
            "native",
            (grad, v, y, cap, case.dim, ()),
            (sharded_grad, sharded_v, sharded_y, sharded_cap, case.dim, ()),
        )
        compare(
            "capped_relu_surrogate_backward",
            "native",
            (grad, y, cap, case.dim, ()),
            (sharded_grad, sharded_y, sharded_cap, case.dim, ()),
        )
        compare(
            "capped_relu_surrogate_backward",
            "reference",
            (grad, x, cap, case.dim, (), v.abs() + 1),
            (sharded_grad, placed(x, mesh, of_y), sharded_cap, case.dim, (), placed(v.abs() + 1, mesh, of_cap)),
            # Torch's sigmoid gives an element other last bits in a shorter tensor.
            exact=False,
        )


@needs_in_place
@on_processes(2, 4)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_in_place(case: Case) -> None:
    mesh = mesh_of()
    x, cap = inputs(case)
    want = dreluop.capped_relu(x, cap, dim=case.dim)
    operators = selection.operators_of("native")
    for of_x in placements_of(len(case.x), mesh, partial=False):
        # A dimension shorter than its processes cannot be written in place: torch says so.
        if any(isinstance(p, Shard) and case.x[p.dim] < mesh.size() for p in of_x):
            continue
        for of_cap in placements_of(len(case.cap), mesh)[:: mesh.ndim]:
            sharded, sharded_cap = placed(x, mesh, of_x), placed(cap, mesh, of_cap)
            assert sharded is not None
            local = sharded.to_local()
            assert operators.capped_relu_(sharded, sharded_cap, case.dim) is None
            assert sharded.placements == of_x
            assert sharded.to_local().data_ptr() == local.data_ptr()
            assert_same_bits(full_tensor(sharded), want)
            sharded = placed(x, mesh, of_x)
            mask, penalty = operators.capped_relu_with_aux_(sharded, sharded_cap, case.dim, False, BALANCER)
            assert_same_bits(full_tensor(sharded), want)
            assert_same_bits(full_tensor(penalty), operators.cap_penalty([cap], BALANCER))
            assert mask.numel() == 0


@on_processes(2, 4)
def test_penalties_of_caps_that_are_placed_differently() -> None:
    mesh = mesh_of()
    caps = [integers(6), integers(3, 4), integers(1), integers(5)]
    grad = torch.tensor(3.0)
    choices = [placements_of(cap.ndim, mesh) for cap in caps]
    every = list(itertools.product(*choices))
    for of_caps in random.Random(0).sample(every, 12):
        sharded = [placed(cap, mesh, placements) for cap, placements in zip(caps, of_caps, strict=True)]
        for which in ("native", "reference"):
            compare("cap_penalty", which, (caps, BALANCER), (sharded, BALANCER))
            for of_grad in placements_of(0, mesh)[:2]:
                compare(
                    "cap_penalty_backward",
                    which,
                    (grad, caps, BALANCER),
                    (placed(grad, mesh, of_grad), sharded, BALANCER),
                )


def test_every_operator_has_a_rule() -> None:
    from dreluop.distributed import rules  # noqa: PLC0415 (imports torch.distributed.tensor)

    assert set(rules.RULES) | set(rules.DECOMPOSITIONS) == set(schemas.SCHEMAS)


@on_processes(2)
def test_a_batch_that_is_sharded_costs_one_reduction_of_the_cap_gradient() -> None:
    mesh = mesh_of()
    x, cap = placed(integers(8, 6), mesh, [Shard(0)]), placed(integers(6, low=1), mesh, [Replicate()])
    operators = selection.operators_of("native")
    with CommDebugMode() as traffic:
        y = operators.capped_relu(x, cap)
        one = placed(torch.tensor(1.0), mesh, [Replicate()])
        dx, dcap, _ = operators.capped_relu_backward(x, y, cap, 1, (), True, True, BALANCER, one)
    assert traffic.get_total_counts() == 0
    assert (y.placements, dx.placements, dcap.placements) == ((Shard(0),), (Shard(0),), (Partial(),))
    with CommDebugMode() as traffic:
        dcap.full_tensor()
    assert traffic.get_total_counts() == 1


@on_processes(2)
def test_caps_that_are_sharded_with_their_channels_cost_no_traffic() -> None:
    mesh = mesh_of()
    x, cap = placed(integers(8, 6), mesh, [Shard(1)]), placed(integers(6, low=1), mesh, [Shard(0)])
    operators = selection.operators_of("native")
    with CommDebugMode() as traffic:
        y, _, penalty = operators.capped_relu_with_aux(x, cap, 1, False, BALANCER)
        one = placed(torch.tensor(1.0), mesh, [Replicate()])
        dx, dcap, _ = operators.capped_relu_backward(x, y, cap, 1, (), True, True, BALANCER, one)
        counts, has_gradient = operators.cap_saturation(x, cap)
    assert traffic.get_total_counts() == 0
    assert (y.placements, dx.placements, dcap.placements) == ((Shard(1),), (Shard(1),), (Shard(0),))
    assert (penalty.placements, counts.placements, has_gradient.placements) == (
        (Partial(),),
        (Shard(1),),
        (Partial("max"),),
    )


@on_processes(2)
def test_a_mask_of_whole_tensors_is_never_cut() -> None:
    mesh = mesh_of()
    x, cap, grad, v = integers(8, 6), integers(6, low=1), integers(8, 6), integers(6)
    operators = selection.operators_of("native")
    _, mask, _ = operators.capped_relu_with_aux(x, cap, 1, True, None)
    sharded_cap = placed(cap, mesh, [Replicate()])
    _, sharded_mask, _ = operators.capped_relu_with_aux(placed(x, mesh, [Replicate()]), sharded_cap, 1, True, None)
    assert_same_bits(full_tensor(sharded_mask), mask)
    sharded_grad = placed(grad, mesh, [Shard(0)])
    rest = (1, (0, 1), True, True, None, None)
    compare(
        "capped_relu_backward", "native", (grad, mask, cap, *rest), (sharded_grad, sharded_mask, sharded_cap, *rest)
    )
    compare(
        "capped_relu_surrogate_backward",
        "native",
        (grad, mask, cap, 1, (0, 1)),
        (sharded_grad, sharded_mask, sharded_cap, 1, (0, 1)),
    )
    sharded_v = placed(v, mesh, [Shard(0)])
    compare(
        "capped_relu_jvp",
        "native",
        (grad, v, mask, cap, 1, (0, 1)),
        (sharded_grad, sharded_v, sharded_mask, sharded_cap, 1, (0, 1)),
    )
