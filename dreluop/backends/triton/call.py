"""One call of an operator, as the kernels receive it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from dreluop.backends.triton import plan, tuning
from dreluop.backends.triton.plan import Layout, Tuning
from dreluop.backends.triton.traversal import Traversal, dense_strides, is_dense, merge_dimensions, traversal_of
from dreluop.ops.composite import mask_order

Strides = tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """What shapes and strides alone tell of a call: as in ``KernelCall``."""

    traversal: Traversal
    layout: Layout
    sizes: Strides
    strides: Mapping[str, Strides]
    wide: bool


@plan.remembered
def geometry_of(
    shape: Strides,
    order: Strides,
    cap_shape: Strides,
    dim: int,
    bias_shape: Strides | None,
    vec: int,
    operands: tuple[tuple[str, Strides | None], ...],
) -> Geometry:
    """Args: ``operands`` by name with their strides by dimension of x, None for one that is not there."""
    traversal = traversal_of(shape, order, cap_shape, dim, bias_shape)
    layout = traversal.layout.merged()
    traversed = [shape[d] for d in traversal.order]
    given = {name: [of[d] for d in traversal.order] for name, of in operands if of is not None}
    strided = {name: of for name, of in given.items() if not is_dense(traversed, of)}
    strides: dict[str, Strides] = dict.fromkeys((name for name, _ in operands), ())
    sizes: Strides = ()
    if strided and layout.numel > 0:
        merged_sizes, merged = merge_dimensions(traversed, list(strided.values()))
        sizes = tuple(merged_sizes)
        strides |= {name: tuple(of) for name, of in zip(strided, merged, strict=True)}
    reach = [sum((size - 1) * step for size, step in zip(traversed, of, strict=True)) for of in given.values()]
    wide = plan.needs_64_bits(vec, layout, max(reach, default=0))
    return Geometry(traversal, layout, sizes, MappingProxyType(strides), wide)


class KernelCall:
    """x's shape traversed in an order, with the caps (and the bias) that its elements use.

    ``operands`` are the tensors of x's shape, by name: ``sizes`` and ``strides[name]`` say where their elements lie,
    empty where that is side by side in traversal order.
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
        self.numel = like.numel()
        self.vec = plan.vec_of(like.element_size())
        self.tuning: Tuning = tuning.for_device(self.device)
        bias_shape = None if bias is None else bias.shape
        given = tuple((name, _strides_of(operand)) for name, operand in operands.items())
        of = geometry_of(like.shape, tuple(order), cap.shape, dim, bias_shape, self.vec, given)
        self.traversal, self.layout, self.sizes, self.strides, self.wide = (
            of.traversal,
            of.layout,
            of.sizes,
            of.strides,
            of.wide,
        )

    def readable(self, per_cap: Tensor) -> Tensor:
        """A cap, bias or tangent as the passes over x read it: flat, in the order in which caps are met.

        Neuron caps that do not lie like x are few beside x and copied; all others stay where they are.
        """
        if per_cap.ndim <= 1:
            return per_cap.reshape(-1)
        return per_cap.permute(self.traversal.cap_order).reshape(-1)

    def stride_of(self, per_cap: Tensor) -> int:
        """Between the caps of what `readable` gave; 0 for one cap over all channels."""
        return 0 if per_cap.numel() == 1 else per_cap.stride(0)

    def cap_sizes(self, *per_cap: Tensor | None) -> tuple[Strides, list[Strides]]:
        """How the kernels find the caps of such tensors as they are: sizes, and strides of each.

        A single cap over all channels does not count: it is not found by channel.
        """
        shape = [self.layout.caps] if self.traversal.shared_cap else self._shape_of_caps(per_cap)
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
                return [t.shape[d] for d in self.traversal.cap_order] if t.ndim > 1 else [t.numel()]
        return [1]

    def _strides_of_caps(self, t: Tensor, rank: int) -> list[int]:
        if t.ndim > 1:
            return [t.stride(d) for d in self.traversal.cap_order]
        return [t.stride(0) if t.ndim == 1 and t.numel() != 1 else 0] * rank

    def mode(self, *per_cap: Tensor) -> int:
        """How an elementwise pass finds the caps of a vector, in tensors as `readable` gave them."""
        side_by_side = all(self.stride_of(t) == 1 and t.data_ptr() % 16 == 0 for t in per_cap)
        return plan.cap_mode(self.vec, self.layout, side_by_side=side_by_side)


def _strides_of(operand: Tensor | Sequence[int] | None) -> Strides | None:
    if operand is None:
        return None
    return operand.stride() if isinstance(operand, Tensor) else tuple(operand)


class SavedInfo:
    """What forward saved: y, or the packed mask and where it lies."""

    def __init__(self, like: Tensor, saved: Tensor, cap: Tensor, order: Sequence[int]) -> None:
        self.y: Tensor | None = None
        self.packed: Tensor | None = None
        self.packed_strides: list[int] | None = None  # counted in elements, by dimension of x
        self.packed_step = 1  # between bytes
        if saved.dtype != torch.uint8:
            self.y = saved
            self.traversal_order = mask_order(saved, cap)
            return
        self.packed = saved
        self.packed_step = saved.stride(0)
        self.packed_strides = [0] * like.ndim
        for d, stride in zip(order, dense_strides([like.shape[d] for d in order]), strict=True):
            self.packed_strides[d] = stride
        self.traversal_order = list(order)

    def at_once(self, call: KernelCall) -> bool:
        """Whether the packed regions of a vector lie side by side and can be read with one access."""
        if self.packed is None or call.strides["packed"] or self.packed_step != 1:
            return False
        return self.packed.data_ptr() % 2 == 0


def nothing(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(0, dtype=dtype, device=like.device)


def same_device(like: Tensor, like_name: str = "x", **others: Tensor | None) -> None:
    """Kernels would read the memory of another device without asking."""
    for name, other in others.items():
        if other is not None and other.device != like.device:
            raise ValueError(f"{name}: got a tensor on {other.device}; expected {like_name}'s device, {like.device}")
