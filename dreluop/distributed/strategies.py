"""How one dimension of a mesh may divide a call of an operator, and what this makes of its sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed.tensor import Partial, Placement, Replicate, Shard

from dreluop._internal.shapes import bias_dimension, cap_dimension


@dataclass(frozen=True)
class ShardingStrategy:
    """A division of a call along one mesh dimension.

    Attributes:
        x: placement of x and of all that has its shape (y, residual, their gradients and tangents).
        cap, bias: placements of the cap, and of what has its shape, and of the bias.
        cap_sum, bias_sum: placements of a sum over the elements that share a cap or a bias.
    """

    x: Placement
    cap: Placement
    bias: Placement
    cap_sum: Placement
    bias_sum: Placement


REPLICATED = ShardingStrategy(Replicate(), Replicate(), Replicate(), Replicate(), Replicate())


def strategy_of(
    shard_dim: int, x_shape: Sequence[int], cap_shape: Sequence[int], dim: int, bias_ndim: int = 1
) -> ShardingStrategy:
    """The strategy that shards dimension ``shard_dim`` of x.

    A cap that belongs to a slice of that dimension is sharded with it, and its sums are complete there. Every process
    needs any other cap, and has a part of its sums.
    """
    cap_dim = cap_dimension(x_shape, cap_shape, dim, shard_dim)
    bias_dim = bias_dimension(x_shape, bias_ndim, dim, shard_dim)
    return ShardingStrategy(
        x=Shard(shard_dim),
        cap=_along(cap_dim, Replicate()),
        bias=_along(bias_dim, Replicate()),
        cap_sum=_along(cap_dim, Partial()),
        bias_sum=_along(bias_dim, Partial()),
    )


def strategies_of(
    x_shape: Sequence[int], cap_shape: Sequence[int], dim: int, bias_ndim: int = 1
) -> list[ShardingStrategy]:
    """Every strategy: x replicated, or sharded along any of its dimensions."""
    sharded = (strategy_of(shard_dim, x_shape, cap_shape, dim, bias_ndim) for shard_dim in range(len(x_shape)))
    return [REPLICATED, *sharded]


def _along(dim: int | None, otherwise: Placement) -> Placement:
    return otherwise if dim is None else Shard(dim)
