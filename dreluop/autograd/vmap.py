"""torch.vmap for capped operators: a batch of calls folded into one call, mostly by views."""

from __future__ import annotations

from torch import Tensor

from dreluop._internal.shapes import granularity_of


def with_batch_first(t: Tensor, batch_dim: int | None, batch_size: int) -> Tensor:
    """t with its batch dimension first; expanded (stride 0) where it has none."""
    return t.expand(batch_size, *t.shape) if batch_dim is None else t.movedim(batch_dim, 0)


class Fold:
    """How a batch of (x, cap) pairs becomes one pair.

    A cap shared by the batch stays as it is (layer, channel) or is broadcast over the batch (neuron). A cap of its own
    for every member, or a shared one whose gradient is asked per member (``per_sample_cap``), joins the cap index:

    ===========  =======================  ====================
    granularity  x                        cap
    ===========  =======================  ====================
    layer        (B, ...)                 (B,) over dim 0
    channel      (.., B * C, ..)          (B * C,) over dim
    neuron       (N, B, ...)              (B, ...)
    ===========  =======================  ====================
    """

    def __init__(
        self,
        batch_size: int,
        x_batch_dim: int | None,
        x: Tensor,
        cap_batch_dim: int | None,
        cap: Tensor,
        dim: int,
        *,
        per_sample_cap: bool,
    ) -> None:
        self.batch_size = batch_size
        self.cap_shape = _without(cap, cap_batch_dim)
        x_shape = _without(x, x_batch_dim)
        self.granularity = granularity_of(x_shape, self.cap_shape, dim)
        self.own_caps = per_sample_cap or cap_batch_dim is not None
        channel = dim % len(x_shape) if self.granularity == "channel" else 0
        if self.granularity == "layer":
            self.batch_at, self.dim = 0, 0
        elif self.granularity == "neuron":
            self.batch_at, self.dim = 1, 1
        else:
            self.batch_at, self.dim = (channel, channel) if self.own_caps else (0, channel + 1)
        self.flatten = self.granularity == "channel" and self.own_caps

    def like_x(self, t: Tensor, batch_dim: int | None) -> Tensor:
        t = with_batch_first(t, batch_dim, self.batch_size).movedim(0, self.batch_at)
        return t.flatten(self.batch_at, self.batch_at + 1) if self.flatten else t

    def cap(self, cap: Tensor, batch_dim: int | None) -> Tensor:
        if not self.own_caps and self.granularity != "neuron":
            return cap
        cap = with_batch_first(cap, batch_dim, self.batch_size)
        return cap if self.granularity == "neuron" else cap.reshape(-1)

    def restore_x(self, t: Tensor) -> tuple[Tensor, int]:
        if self.flatten:
            t = t.unflatten(self.batch_at, (self.batch_size, *self.cap_shape))
        return t, self.batch_at

    def restore_cap(self, t: Tensor) -> tuple[Tensor, int]:
        return t.reshape(self.batch_size, *self.cap_shape), 0


def _without(t: Tensor, batch_dim: int | None) -> list[int]:
    shape = list(t.shape)
    if batch_dim is not None:
        del shape[batch_dim]
    return shape
