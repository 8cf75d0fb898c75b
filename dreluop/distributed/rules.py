"""How DTensor shards every operator: which placements of its arguments give which placements of its results.

A cap that is whole on every process while x is sharded gets a gradient of which each process has a part (``Partial``);
DTensor adds the parts up, once, where the gradient is needed whole. ``backward`` with a penalty puts
``2 * balancer * grad_penalty * cap`` into each part. It is linear in (grad, grad_penalty) together, not in grad alone:
so in this case its rule asks for grad_penalty in parts too, and DTensor hands each process a part of it. A grad that
comes in parts is added up before: to pass on parts of dx would be right, but torch 2.10's row-wise layers are not.

A packed mask has no placement: it has neither x's shape nor its order. ``local`` runs ``save="mask"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from dreluop._internal.dtensor import refuse_mask_in_place
from dreluop._internal.operator_checks import some_caps
from dreluop.distributed.strategies import REPLICATED, ShardingStrategy, strategies_of
from dreluop.ops import handles
from dreluop.ops.call import BackwardCall
from dreluop.ops.composite import accumulation_dtype
from dreluop.ops.schemas import IN_PLACE, NAMESPACE, OVERLOADS, library, overload

# Placements along one mesh dimension: of the results in their order, and of the tensors among the arguments by name.
Rule = tuple[list[Placement], dict[str, Placement]]


def _forward(x: Any, cap: Any, dim: int = 1, bias: Any = None, residual: Any = None, zeroed: int = 0) -> Iterator[Rule]:
    for strategy in _strategies(x, cap, dim, bias):
        yield [strategy.x], _arguments_of_forward(strategy)


def _forward_(
    x: Any, cap: Any, dim: int = 1, bias: Any = None, residual: Any = None, zeroed: int = 0
) -> Iterator[Rule]:
    for strategy in _strategies(x, cap, dim, bias):
        yield [], _arguments_of_forward(strategy)


def _with_aux(
    x: Any,
    cap: Any,
    dim: int,
    mask: bool,
    balancer: float | None,
    bias: Any = None,
    residual: Any = None,
    zeroed: int = 0,
) -> Iterator[Rule]:
    if mask and not all(placement.is_replicate() for placement in x.placements):
        raise ValueError(
            f"mask: got x with the placements {tuple(x.placements)}; expected x replicated, as the packed "
            'mask of a shard is no shard of the packed mask. Call dreluop.capped_relu(..., save="mask")'
        )
    for strategy in [REPLICATED] if mask else _strategies(x, cap, dim, bias):
        # A sum over the caps: of those that every process has, each has all of it.
        penalty = Replicate() if balancer is None or strategy.cap.is_replicate() else Partial()
        yield [strategy.x, Replicate(), penalty], _arguments_of_forward(strategy)


def _backward(*given: Any, **keywords: Any) -> Iterator[Rule]:
    call = BackwardCall(*given, **keywords)
    for strategy in [REPLICATED] if _is_mask(call.saved) else _strategies(call.grad, call.cap, call.dim, call.bias):
        in_parts = call.need_cap and strategy.cap_sum.is_partial()
        arguments = {
            "grad": strategy.x,
            "saved": strategy.x,
            "cap": strategy.cap,
            "grad_penalty": Partial() if in_parts else Replicate(),
            "bias": strategy.bias,
        }
        yield _results_of_backward(strategy, call), arguments


def _tangent(u: Any, v: Any, saved: Any, cap: Any, dim: int, order: Sequence[int], zeroed: int = 0) -> Iterator[Rule]:
    for strategy in [REPLICATED] if _is_mask(saved) else _strategies(u, cap, dim):
        yield [strategy.x], {"u": strategy.x, "v": strategy.cap, "saved": strategy.x, "cap": strategy.cap}


def _surrogate(grad: Any, saved: Any, cap: Any, dim: int, order: Sequence[int], width: Any = None) -> Iterator[Rule]:
    for strategy in [REPLICATED] if _is_mask(saved) else _strategies(grad, cap, dim):
        yield [strategy.x], {"grad": strategy.x, "saved": strategy.x, "cap": strategy.cap, "width": strategy.cap}


def _saturation(x: Any, cap: Any, dim: int = 1) -> Iterator[Rule]:
    for strategy in _strategies(x, cap, dim):
        # The counts have a dimension before those of the cap.
        counts = Shard(strategy.cap_sum.dim + 1) if isinstance(strategy.cap_sum, Shard) else strategy.cap_sum
        # A sample has a gradient where any of its elements is.
        has_gradient = strategy.x if strategy.x in (Replicate(), Shard(0)) else Partial("max")
        yield [counts, has_gradient], {"x": strategy.x, "cap": strategy.cap}


RULES: dict[str, Callable[..., Iterator[Rule]]] = {
    "capped_relu": _forward,
    "capped_relu_": _forward_,
    "capped_relu_with_aux": _with_aux,
    "capped_relu_backward": _backward,
    "capped_relu_jvp": _tangent,
    "capped_relu_surrogate_backward": _surrogate,
    "cap_saturation": _saturation,
}


def _strategies(x: Any, cap: Any, dim: int, bias: Any = None) -> list[ShardingStrategy]:
    return strategies_of(x.shape, cap.shape, dim, 1 if bias is None else len(bias.shape))


def _arguments_of_forward(strategy: ShardingStrategy) -> dict[str, Placement]:
    return {"x": strategy.x, "cap": strategy.cap, "bias": strategy.bias, "residual": strategy.x}


def _results_of_backward(strategy: ShardingStrategy, call: BackwardCall) -> list[Placement]:
    # A result that is not asked for is empty, on every process.
    wanted = (
        (strategy.x, call.need_x),
        (strategy.cap_sum, call.need_cap),
        (strategy.bias_sum, call.bias is not None),
    )
    return [placement if needed else Replicate() for placement, needed in wanted]


def _is_mask(saved: Any) -> bool:
    return bool(saved.tensor_meta.dtype == torch.uint8)


def _sharding(name: str, which: str, rule: Callable[..., Iterator[Rule]]) -> Callable[..., Any]:
    names = [argument.name for argument in _operator(name, which)._schema.arguments]

    def sharding(*args: Any) -> list[tuple[list[Placement], list[Placement | None]]]:
        if name in IN_PLACE:
            _refuse_to_move(args[0])
        # A placement for every tensor that came, None for all else.
        came = [
            argument if hasattr(value, "placements") else None for argument, value in zip(names, args, strict=False)
        ]
        return [(results, [inputs[n] if n else None for n in came]) for results, inputs in rule(*args)]

    return sharding


def _refuse_to_move(x: Any) -> None:
    if not all(placement in (Replicate(), *map(Shard, range(len(x.shape)))) for placement in x.placements):
        raise ValueError(
            f"inplace: got x with the placements {tuple(x.placements)}; expected x replicated or sharded on every "
            "process, as the result must stay where x is; use inplace=False"
        )
    if torch.__version__ < "2.11":
        raise RuntimeError(
            f"inplace: torch {torch.__version__} cannot run operators on DTensors that return nothing; use "
            "inplace=False, or torch 2.11"
        )


def _with_aux_in_place(which: str) -> Callable[..., Any]:
    """Torch takes a DTensor operator whose name ends in _ to return nothing but its first argument."""
    operators = handles.BY_OVERLOAD[which]

    def run(
        x: DTensor, cap: Tensor, dim: int, mask: bool, balancer: float | None, *others: Any
    ) -> tuple[Tensor, Tensor]:
        if mask:
            refuse_mask_in_place()
        operators.capped_relu_(x, cap, dim, *others)
        nothing = x.new_empty((0,), dtype=torch.uint8)
        if balancer is None:
            return nothing, cap.new_empty((0,), dtype=accumulation_dtype(cap))
        return nothing, operators.cap_penalty([cap], balancer)

    return run


def _penalty(which: str) -> Callable[..., Any]:
    """Caps of any placements: one call for those that are placed alike, of which each process then has a part."""
    operators = handles.BY_OVERLOAD[which]

    def run(caps: Sequence[Any], balancer: float) -> Tensor:
        some_caps(caps)
        groups: dict[Any, list[Tensor]] = {}
        for cap in caps:
            # Below autograd, where what DTensor does for it must not be recorded.
            whole = cap.detach().redistribute(placements=[Replicate() if p.is_partial() else p for p in cap.placements])
            groups.setdefault((cap.device_mesh, whole.placements), []).append(whole.to_local())
        penalties: list[Tensor] = []
        for (mesh, placements), tensors in groups.items():
            parts = [placement if placement.is_replicate() else Partial() for placement in placements]
            penalties.append(DTensor.from_local(operators.cap_penalty(tensors, balancer), mesh, parts, run_check=False))
        dtype = accumulation_dtype(*caps)
        total = penalties[0].to(dtype)
        for penalty in penalties[1:]:
            total = total + penalty.to(dtype)
        return total

    return run


def _penalty_backward(which: str) -> Callable[..., Any]:
    def run(grad: Tensor, caps: Sequence[Tensor], balancer: float) -> list[Tensor]:
        some_caps(caps)
        dtype = accumulation_dtype(grad, *caps)
        return [(2 * balancer * grad.to(dtype) * cap.to(dtype)).to(cap.dtype) for cap in caps]

    return run


# What register_sharding cannot say: lists of results, and results of operators in place.
DECOMPOSITIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "capped_relu_with_aux_": _with_aux_in_place,
    "cap_penalty": _penalty,
    "cap_penalty_backward": _penalty_backward,
}


def register() -> None:
    """Tell DTensor about every operator, in all its overloads."""
    for which in OVERLOADS:
        for name, rule in RULES.items():
            register_sharding(_operator(name, which))(_sharding(name, which, rule))
        for name, decomposition in DECOMPOSITIONS.items():
            torch.library.register_torch_dispatch(
                f"{NAMESPACE}::{overload(name, which)}", DTensor, _without_class(decomposition(which)), lib=library
            )


def _operator(name: str, which: str) -> Any:
    return getattr(handles.BY_OVERLOAD[which], name)


def _without_class(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(cls: type, operator: Any, types: Any, args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> Any:
        with torch.no_grad():
            return function(*args, **(kwargs or {}))

    return run
