"""A call with ``save="mask"`` on DTensors. A packed mask has no placement, so each process has one of its own part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dreluop._internal import dtensor
from dreluop.autograd.penalty import penalty_of
from dreluop.ops.call import Call


def run(call: Call, run_locally: Callable[[Call], Any]) -> Tensor | tuple[Tensor, Tensor]:
    def local(x: Tensor, cap: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        y: Tensor = run_locally(Call(x, cap, call.dim, True, bias=bias, residual=residual, zeroed=call.zeroed))
        return y

    assert dtensor.on_local_tensors is not None  # since the sharding rules are registered
    y = dtensor.on_local_tensors(local, call.x, call.cap, call.dim, call.bias, call.residual)
    return y if call.balancer is None else (y, penalty_of([call.cap], call.balancer))
