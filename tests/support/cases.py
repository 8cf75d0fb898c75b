"""Inputs shared by the tests: shapes, memory layouts, cap granularities, dtypes and special values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

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
    # What it reaches that others do not; tests/build/test_case_branches.py compares all cases with the plans' branches.
    why: str = field(default="", compare=False)
    # Few others reach the same branches, so this one is tested with every dtype.
    every_dtype: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "scalar"
        cap = "x".join(map(str, self.cap_shape)) or "scalar"
        return f"{shape}-cap_{cap}-dim_{self.dim}-{self.layout}"

    def traits(self) -> dict[str, str]:
        """What stands for the case where only some of its combinations with other parameters are tested."""
        cap = "neuron" if len(self.cap_shape) > 1 else "layer" if math.prod(self.cap_shape) == 1 else "channel"
        return {"granularity": cap, "layout": self.layout, "shape": str(self) if self.every_dtype else "any"}

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
    Case((), (), why="no dimension, a cap without one"),
    Case((), (1,), why="no dimension, a cap with one"),
    Case((0,), (), why="no element"),
    Case((1,), (1,), why="one element"),
    Case((7,), (), why="less than a vector, in half precision"),
    Case((64,), (1,), why="whole vectors, no rest"),
    Case((1025,), (), why="one more than a block of the CPU"),
    Case((4099,), (1,), why="several blocks and a rest"),
    Case((70001,), (), every_dtype=True, why="several tiles; blocks of the GPU that share the cap"),
    Case((3, 0, 5), (1,), why="no element, between dimensions that have some"),
    Case((33, 65), (), layout="transposed", why="dense, in another order"),
    Case((129, 67), (1,), layout="step", why="a stride in the last dimension; segments of one run"),
    Case((129, 67), (), layout="narrow", why="rows with gaps; segments of one run"),
    Case(
        (129, 67),
        (),
        layout="offset",
        every_dtype=True,
        why="dense at an unaligned address: a head before the first vector",
    ),
    Case((2, 3, 5, 7), (), layout="channels_last", why="dense, in the order of channels_last"),
    Case((40, 30), (), layout="expanded", why="rows at one address"),
    Case((40, 30), (), layout="unfold", why="rows that overlap"),
)

_CHANNEL = (
    Case((0, 4), (4,), every_dtype=True, why="no row: caps whose gradient is 0"),
    Case((4, 0), (0,), why="no channel, and so no cap"),
    Case((2, 3, 0), (3,), why="no element in a run: caps whose gradient is 0"),
    Case((1, 17), (17,), why="columns of a single row"),
    Case((17, 3), (3,), why="columns repeated to a row of one vector and more"),
    Case((64, 512), (512,), every_dtype=True, why="caps aligned with vectors; several tiles of columns on the GPU"),
    Case(
        (20011, 3),
        (3,),
        every_dtype=True,
        why="repeated columns: tiles below each other, and a last row that is cut off",
    ),
    Case((3, 4099), (4099,), every_dtype=True, why="several tiles of columns; the last vector of a row is cut off"),
    Case((13,), (13,), dim=0, why="channels without a batch"),
    Case((13,), (13,), dim=-1, why="channels without a batch, counted from the end"),
    Case((11, 13), (11,), dim=0, every_dtype=True, why="channels outermost, in runs too short for the CPU's"),
    Case((3, 5, 11), (11,), dim=-1, why="channels innermost, counted from the end"),
    Case((2, 3, 5, 7), (3,), dim=-3, why="channels between others, counted from the end; shortest runs of the CPU"),
    Case((2, 3, 5, 7), (5,), dim=2, why="channels in another dimension than 1"),
    Case((2, 8, 16, 16), (8,), why="an image: runs of whole vectors"),
    Case((3, 13, 37, 29), (13,), every_dtype=True, why="an image with odd sizes: segments of runs on the GPU"),
    Case((2, 3, 20011), (3,), every_dtype=True, why="runs of several tiles; blocks of the GPU that share caps"),
    Case((2, 3, 2064), (3,), every_dtype=True, why="rows of whole vectors, too long for columns on the GPU"),
    Case((20, 3, 40), (3,), every_dtype=True, why="runs that are columns on the CPU, as there are many rows"),
    Case((1025, 5, 3), (5,), why="runs shorter than a vector, repeated; a last row that is cut off"),
    Case((2, 3, 5, 7), (3,), layout="channels_last", why="few channels innermost in memory"),
    Case((4, 64, 9, 9), (64,), layout="channels_last", why="caps aligned with vectors, innermost in memory"),
    Case((2, 17, 33, 31), (17,), layout="channels_last", why="odd caps innermost in memory; tiles below each other"),
    Case((2, 6, 5, 7), (5,), dim=2, layout="channels_last", why="channels between others in memory, not in dim 1"),
    Case((2, 6, 5, 7), (2,), dim=0, layout="channels_last", why="channels outermost in memory: two long runs"),
    Case((2, 5, 3, 4, 3), (5,), layout="channels_last_3d", why="volumes; channels innermost in memory"),
    Case((65, 33), (33,), layout="transposed", why="channels outermost in memory"),
    Case((9, 6, 65), (6,), layout="transposed", why="channels between others, batch innermost in memory"),
    Case((6, 7, 9, 5), (7,), layout="permuted", why="batch innermost in memory"),
    Case((6, 7, 9, 5), (7,), layout="swapped", why="channels and batch swapped in memory"),
    Case((6, 35, 33), (35,), layout="step", why="runs with a stride inside"),
    Case((6, 35, 33), (35,), layout="narrow", why="runs with gaps between"),
    Case((6, 35, 33), (35,), layout="rows", why="dense runs, and a gap after each sample"),
    Case((6, 35, 33), (35,), layout="offset", why="runs at an unaligned address"),
    Case((19, 130), (130,), layout="narrow", why="columns with gaps between rows"),
    Case((19, 130), (130,), layout="expanded", why="every row at one address"),
    Case((19, 130), (130,), layout="expanded_last", why="every column at one address"),
    Case((5, 7, 6), (7,), layout="unfold", why="runs that overlap"),
)

_NEURON = (
    Case((0, 3, 4), (3, 4), why="no sample: caps whose gradient is 0"),
    Case((3, 0, 4), (0, 4), why="no neuron, and so no cap"),
    Case((5, 3, 4), (3, 4), why="caps aligned with vectors, or not, by the dtype"),
    Case((1, 7, 1009), (7, 1009), why="a single sample; several tiles of columns"),
    Case((130, 8, 16), (8, 16), every_dtype=True, why="blocks of the GPU that share caps; a last row that is cut off"),
    Case((7, 1, 1), (1, 1), why="a single neuron is one run"),
    Case((7, 3, 5, 5), (3, 5, 5), why="an odd number of neurons"),
    Case((7, 3, 5, 6), (3, 5, 6), layout="channels_last", why="caps and x in different orders of memory"),
    Case((7, 3, 5), (3, 5), layout="transposed", every_dtype=True, why="batch innermost in memory: runs of a neuron"),
    Case((7, 3, 5, 6), (3, 5, 6), layout="permuted", why="batch innermost in memory: vectors that are cut off"),
    Case(
        (7, 3, 5, 6),
        (3, 5, 6),
        layout="swapped",
        every_dtype=True,
        why="batch between neurons in memory: it moves to the front",
    ),
    Case((1, 3, 5, 6), (3, 5, 6), layout="channels_last", why="a batch of one, which has no place in memory"),
    Case((70, 3, 5), (3, 5), layout="narrow", why="neurons with gaps"),
    Case((7, 3, 5), (3, 5), layout="offset", why="neurons at an unaligned address"),
    Case((7, 3, 5), (3, 5), layout="expanded", why="every sample at one address"),
)

CASES = (*_LAYER, *_CHANNEL, *_NEURON)
# For tests that look at one aspect: every granularity, both memory formats, a slice.
FEW_CASES = (
    Case((1025,), (), why="one cap"),
    Case((33, 65), (1,), layout="transposed", why="one cap, another order of memory"),
    Case((64, 130), (130,), why="a dense layer: channels innermost"),
    Case((3, 13, 9, 29), (13,), why="an image: channels between others"),
    Case((4, 16, 9, 9), (16,), layout="channels_last", why="an image in channels_last"),
    Case((6, 35, 33), (35,), layout="narrow", why="a slice"),
    Case((3, 5, 11), (11,), dim=-1, layout="step", why="a stride in the last dimension, which has the channels"),
    Case((30, 8, 6), (8, 6), why="neurons"),
    Case((7, 3, 5, 6), (3, 5, 6), layout="channels_last", why="neurons in channels_last"),
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
