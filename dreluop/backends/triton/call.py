"""One call of an operator, as the kernels are told of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dreluop.backends.reference import code_order
from dreluop.backends.triton import plan, tuning
from dreluop.backends.triton.plan import Layout, Tuning
from dreluop.backends.triton.walk import dense_strides, is_dense, merge_dimensions, walk_of

Strides = tuple[int, ...]


class Call:
    """x's shape walked in an order, with the caps (and the bias) that its elements use.

    ``operands`` are the tensors of x's shape, by name: ``sizes`` and ``strides[name]`` say where their elements lie,
    empty where that is side by side in walking order.
    """

    def __init__(
        self,
        like: Tensor,
        cap: Tensor,
        dim: int,
        order: Sequence[int],
        bias: Tensor | None = None,
        **operands: Tensor | Sequence[int] | None,
    ) -> None:
        self.device = like.device
        self.walk = walk_of(like.shape, order, cap.shape, dim, None if bias is None else bias.shape)
        self.layout: Layout = self.walk.layout.merged()
        self.numel = like.numel()
        self.group = plan.group_of(like.element_size())
        self.tuning: Tuning = tuning.for_device(self.device)
        walked = [like.shape[d] for d in self.walk.order]
        given = {}
        for name, operand in operands.items():
            if operand is not None:
                of = operand.stride() if isinstance(operand, Tensor) else operand
                given[name] = [of[d] for d in self.walk.order]
        strided = {name: of for name, of in given.items() if not is_dense(walked, of)}
        self.strides: dict[str, Strides] = dict.fromkeys(operands, ())
        self.sizes: Strides = ()
        if strided and self.numel > 0:
            sizes, merged = merge_dimensions(walked, list(strided.values()))
            self.sizes = tuple(sizes)
            self.strides |= {name: tuple(of) for name, of in zip(strided, merged, strict=True)}
        reach = [sum((size - 1) * step for size, step in zip(walked, of, strict=True)) for of in given.values()]
        self.wide = plan.needs_64_bits(self.group, self.layout, max(reach, default=0))

    def readable(self, per_cap: Tensor) -> Tensor:
        """A cap, bias or tangent as the passes over x read it: flat, in the order in which caps are met.

        Neuron caps that do not lie like x are few beside x and copied; all others stay where they are.
        """
        if per_cap.ndim <= 1:
            return per_cap.reshape(-1)
        return per_cap.permute(self.walk.cap_order).reshape(-1)

    def stride_of(self, per_cap: Tensor) -> int:
        """Between the caps of what `readable` gave; 0 for one cap over all channels."""
        return 0 if per_cap.numel() == 1 else per_cap.stride(0)

    def cap_sizes(self, *per_cap: Tensor | None) -> tuple[Strides, list[Strides]]:
        """How the kernels find the caps of such tensors as they are: sizes, and strides of each.

        A single cap over all channels does not count: it is not found by channel.
        """
        shape = [self.layout.caps] if self.walk.shared_cap else self._shape_of_caps(per_cap)
        given = [t for t in per_cap if t is not None]
        strides = [self._strides_of_caps(t, len(shape)) for t in given]
        if all(is_dense(shape, of) for of in strides):
            return (), [() for _ in per_cap]
        sizes, merged = merge_dimensions(shape, strides)
        found = iter(merged)
        return tuple(sizes), [() if t is None else tuple(next(found)) for t in per_cap]

    def _shape_of_caps(self, per_cap: Sequence[Tensor | None]) -> list[int]:
        for t in per_cap:
            if t is not None:
                return [t.shape[d] for d in self.walk.cap_order] if t.ndim > 1 else [t.numel()]
        return [1]

    def _strides_of_caps(self, t: Tensor, rank: int) -> list[int]:
        if t.ndim > 1:
            return [t.stride(d) for d in self.walk.cap_order]
        return [t.stride(0) if t.ndim == 1 and t.numel() != 1 else 0] * rank

    def mode(self, *per_cap: Tensor) -> int:
        """How an elementwise pass finds the caps of a group, in tensors as `readable` gave them."""
        side_by_side = all(self.stride_of(t) == 1 and t.data_ptr() % 16 == 0 for t in per_cap)
        return plan.cap_mode(self.group, self.layout, side_by_side=side_by_side)


class Saved:
    """What forward kept: y, or the code and where it lies."""

    def __init__(self, like: Tensor, saved: Tensor, cap: Tensor, order: Sequence[int]) -> None:
        self.y: Tensor | None = None
        self.code: Tensor | None = None
        self.code_strides: list[int] | None = None  # counted in codes, by dimension of x
        self.code_step = 1  # between bytes
        if saved.dtype != torch.uint8:
            self.y = saved
            self.walk_order = code_order(saved, cap)
            return
        self.code = saved
        self.code_step = saved.stride(0)
        self.code_strides = [0] * like.ndim
        for d, stride in zip(order, dense_strides([like.shape[d] for d in order]), strict=True):
            self.code_strides[d] = stride
        self.walk_order = list(order)

    def at_once(self, call: Call) -> bool:
        """Whether the codes of a group lie side by side and can be read with one access."""
        if self.code is None or call.strides["code"] or self.code_step != 1:
            return False
        return self.code.data_ptr() % 2 == 0


def nothing(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(0, dtype=dtype, device=like.device)


def same_device(like: Tensor, like_name: str = "x", **others: Tensor | None) -> None:
    """Kernels would read the memory of another device without asking."""
    for name, other in others.items():
        if other is not None and other.device != like.device:
            raise ValueError(f"{name}: got a tensor on {other.device}; expected {like_name}'s device, {like.device}")
