"""``save="mask"`` with DTensors: the call on every process's own elements, between two changes of view.

What is packed there never leaves the process, and no gradient of another placement meets it: DTensor brings the
gradient of y to y's placement before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from dreluop.distributed.strategies import REPLICATED, strategy_of


def on_local_tensors(function: Callable[..., Tensor], x: Any, cap: Any, dim: int, bias: Any, residual: Any) -> Tensor:
    """``function(x, cap, bias, residual)``, with y's shape x's, on the local tensors. Differentiable.

    Args:
        function: called with ordinary tensors, or None for a bias or residual that is not there.
        x, cap, bias, residual: DTensors on one mesh, but for a cap that is a constant.
    """
    mesh = x.device_mesh
    ndim = 1 if bias is None else bias.ndim
    shards = {Shard(cut): strategy_of(cut, x.shape, cap.shape, dim, ndim) for cut in range(x.ndim)}
    along = [shards.get(placement, REPLICATED) for placement in x.placements]

    def local(t: Any, placements: list[Any], of_gradient: list[Any]) -> Any:
        if not isinstance(t, DTensor):
            return t
        return t.redistribute(placements=placements).to_local(grad_placements=of_gradient)

    of_x = [strategy.x for strategy in along]
    y = function(
        local(x, of_x, of_x),
        local(cap, [strategy.cap for strategy in along], [strategy.cap_sum for strategy in along]),
        local(bias, [strategy.bias for strategy in along], [strategy.bias_sum for strategy in along]),
        local(residual, of_x, of_x),
    )
    strides = torch.empty_like(torch.empty_strided(x.shape, x.stride(), device="meta")).stride()
    return DTensor.from_local(y, mesh, of_x, run_check=False, shape=x.shape, stride=strides)
