"""Inputs shared by the tests: shapes, memory layouts, cap granularities, dtypes and special values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# (dtype of x, dtype of the cap)
MIXED_DTYPES = (
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
    (torch.bfloat16, torch.float64),
    (torch.float16, torch.bfloat16),
    (torch.float64, torch.float16),
)


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def mixed_id(dtypes: tuple[torch.dtype, torch.dtype]) -> str:
    return f"x_{dtype_id(dtypes[0])}-cap_{dtype_id(dtypes[1])}"


# Fills the memory around a strided view: larger than any cap, so that a stray write shows.
SENTINEL = 77.0


def _in_larger_buffer(t: Tensor, buffer_shape: Iterable[int], index: tuple[slice, ...]) -> Tensor:
    view = torch.full(tuple(buffer_shape), SENTINEL, dtype=t.dtype)[index]
    return view.copy_(t)


def _step(t: Tensor) -> Tensor:
    return _in_larger_buffer(t, (*t.shape[:-1], 2 * t.shape[-1] + 1), (..., slice(1, None, 2)))


def _narrow(t: Tensor) -> Tensor:
    return _in_larger_buffer(t, [n + 3 for n in t.shape], tuple(slice(2, n + 2) for n in t.shape))


def _rows(t: Tensor) -> Tensor:
    return _in_larger_buffer(t, (2 * t.shape[0], *t.shape[1:]), (slice(None, None, 2),))


def _offset(t: Tensor) -> Tensor:
    return _in_larger_buffer(t.flatten(), (t.numel() + 1,), (slice(1, None),)).view(t.shape)


# Each gives a tensor with the values of its argument, laid out otherwise.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.clone(memory_format=torch.contiguous_format),
    "channels_last": lambda t: t.clone(memory_format=torch.channels_last),
    "channels_last_3d": lambda t: t.clone(memory_format=torch.channels_last_3d),
    "transposed": lambda t: t.transpose(0, -1).clone(memory_format=torch.contiguous_format).transpose(0, -1),
    "swapped": lambda t: t.transpose(0, 1).clone(memory_format=torch.contiguous_format).transpose(0, 1),
    "permuted": lambda t: t.movedim(0, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 0),
    "step": _step,
    "narrow": _narrow,
    "rows": _rows,
    "offset": _offset,
}

# Several elements at one address: these take only some of the values of their argument.
OVERLAPPING: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded": lambda t: t.narrow(0, 0, 1).expand(t.shape),
    "expanded_last": lambda t: t.narrow(-1, 0, 1).expand(t.shape),
    "unfold": lambda t: t.flatten().as_strided(t.shape, [1] * t.ndim),
}


@dataclass(frozen=True)
class Case:
    """One shape of x, the shape of its cap, and the layout of x in memory."""

    shape: tuple[int, ...]
    cap_shape: tuple[int, ...]
    dim: int = 1
    layout: str = "contiguous"

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "scalar"
        cap = "x".join(map(str, self.cap_shape)) or "scalar"
        return f"{shape}-cap_{cap}-dim_{self.dim}-{self.layout}"

    @property
    def overlaps(self) -> bool:
        return self.layout in OVERLAPPING

    def lay_out(self, t: Tensor) -> Tensor:
        return (LAYOUTS | OVERLAPPING)[self.layout](t)

    def cap(self, dtype: torch.dtype) -> Tensor:
        """Caps around 1; of more than four, some are 0, -0.0 and negative."""
        cap = torch.empty(self.cap_shape).uniform_(0.3, 2, generator=_generator(self, 1))
        if cap.numel() > 4:
            flat = cap.view(-1)
            flat[1], flat[-1], flat[cap.numel() // 2] = 0.0, -0.0, -1.0
        return cap.to(dtype)

    def x(self, dtype: torch.dtype, cap: Tensor) -> Tensor:
        """About a third each off, inside and capped, with exact ties."""
        generator = _generator(self, 2)
        x = torch.randn(self.shape, generator=generator).mul_(1.5).add_(0.4).to(dtype)
        tie = torch.rand(self.shape, generator=generator) < 0.1
        return self.lay_out(torch.where(tie, broadcast_cap(self, cap).to(dtype), x))

    def grad(self, dtype: torch.dtype, seed: int = 3) -> Tensor:
        return torch.randn(self.shape, generator=_generator(self, seed)).to(dtype)

    def inputs(self, dtype: torch.dtype, cap_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        cap = self.cap(cap_dtype or dtype)
        return self.x(dtype, cap), cap


def broadcast_cap(case: Case, cap: Tensor) -> Tensor:
    view = [1] * len(case.shape)
    if len(case.cap_shape) > 1:
        return cap.expand(case.shape)
    if math.prod(case.cap_shape) == 1:
        return cap.reshape(()).expand(case.shape)
    view[case.dim] = -1
    return cap.reshape(view).expand(case.shape)


def _generator(case: Case, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed + 1000 * sum(case.shape) + 10 * len(case.cap_shape))


_LAYER = (
    Case((), ()),
    Case((), (1,)),
    Case((0,), ()),
    Case((1,), (1,)),
    Case((7,), ()),
    Case((64,), (1,)),
    Case((1025,), ()),
    Case((4099,), (1,)),
    Case((70001,), ()),
    Case((3, 0, 5), (1,)),
    Case((33, 65), (), layout="transposed"),
    Case((129, 67), (1,), layout="step"),
    Case((129, 67), (), layout="narrow"),
    Case((129, 67), (), layout="offset"),
    Case((2, 3, 5, 7), (), layout="channels_last"),
    Case((40, 30), (), layout="expanded"),
    Case((40, 30), (), layout="unfold"),
)

_CHANNEL = (
    Case((0, 4), (4,)),
    Case((4, 0), (0,)),
    Case((2, 3, 0), (3,)),
    Case((1, 17), (17,)),
    Case((17, 3), (3,)),
    Case((64, 512), (512,)),
    Case((20011, 3), (3,)),
    Case((3, 4099), (4099,)),
    Case((13,), (13,), dim=0),
    Case((13,), (13,), dim=-1),
    Case((11, 13), (11,), dim=0),
    Case((3, 5, 11), (11,), dim=-1),
    Case((2, 3, 5, 7), (3,), dim=-3),
    Case((2, 3, 5, 7), (5,), dim=2),
    Case((2, 8, 16, 16), (8,)),
    Case((3, 13, 37, 29), (13,)),
    Case((2, 3, 20011), (3,)),
    Case((1025, 5, 3), (5,)),
    Case((2, 3, 5, 7), (3,), layout="channels_last"),
    Case((4, 64, 9, 9), (64,), layout="channels_last"),
    Case((2, 17, 33, 31), (17,), layout="channels_last"),
    Case((2, 6, 5, 7), (5,), dim=2, layout="channels_last"),
    Case((2, 6, 5, 7), (2,), dim=0, layout="channels_last"),
    Case((2, 5, 3, 4, 3), (5,), layout="channels_last_3d"),
    Case((65, 33), (33,), layout="transposed"),
    Case((9, 6, 65), (6,), layout="transposed"),
    Case((6, 7, 9, 5), (7,), layout="permuted"),
    Case((6, 7, 9, 5), (7,), layout="swapped"),
    Case((6, 35, 33), (35,), layout="step"),
    Case((6, 35, 33), (35,), layout="narrow"),
    Case((6, 35, 33), (35,), layout="rows"),
    Case((6, 35, 33), (35,), layout="offset"),
    Case((19, 130), (130,), layout="narrow"),
    Case((19, 130), (130,), layout="expanded"),
    Case((19, 130), (130,), layout="expanded_last"),
    Case((5, 7, 6), (7,), layout="unfold"),
)

_NEURON = (
    Case((0, 3, 4), (3, 4)),
    Case((3, 0, 4), (0, 4)),
    Case((5, 3, 4), (3, 4)),
    Case((1, 7, 1009), (7, 1009)),
    Case((130, 8, 16), (8, 16)),
    Case((7, 1, 1), (1, 1)),
    Case((7, 3, 5, 5), (3, 5, 5)),
    Case((7, 3, 5, 6), (3, 5, 6), layout="channels_last"),
    Case((7, 3, 5), (3, 5), layout="transposed"),
    Case((7, 3, 5, 6), (3, 5, 6), layout="permuted"),
    Case((7, 3, 5, 6), (3, 5, 6), layout="swapped"),
    Case((1, 3, 5, 6), (3, 5, 6), layout="channels_last"),
    Case((70, 3, 5), (3, 5), layout="narrow"),
    Case((7, 3, 5), (3, 5), layout="offset"),
    Case((7, 3, 5), (3, 5), layout="expanded"),
)

CASES = (*_LAYER, *_CHANNEL, *_NEURON)
# For tests that look at one aspect: every granularity, both memory formats, a slice.
FEW_CASES = (
    Case((1025,), ()),
    Case((33, 65), (1,), layout="transposed"),
    Case((64, 130), (130,)),
    Case((3, 13, 9, 29), (13,)),
    Case((4, 16, 9, 9), (16,), layout="channels_last"),
    Case((6, 35, 33), (35,), layout="narrow"),
    Case((3, 5, 11), (11,), dim=-1, layout="step"),
    Case((30, 8, 6), (8, 6)),
    Case((7, 3, 5, 6), (3, 5, 6), layout="channels_last"),
)
WRITABLE_CASES = tuple(case for case in CASES if not case.overlaps)


def special_values(dtype: torch.dtype) -> Tensor:
    """NaN, infinities, both zeros, subnormals, the extremes, and values around 1 and -1."""
    info = torch.finfo(dtype)
    one_up, one_down = 1 + info.eps, 1 - info.eps / 2
    values = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, one_up, one_down, 2.0, 0.5, -0.5]
    values += [info.max, -info.max, info.tiny, -info.tiny, info.smallest_normal / 2, -info.smallest_normal / 4]
    smallest = info.smallest_normal * info.eps
    return torch.tensor([*values, smallest, -smallest, 3 * smallest], dtype=torch.float64).to(dtype)


def all_bit_patterns(dtype: torch.dtype) -> Tensor:
    """Every value of a 16-bit dtype."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
