"""``bit_flips``: a network whose memory has faults, for the time of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dreluop._internal import cap_state, checks
from dreluop._internal.cap_state import LearnedCap
from dreluop.faults import bits as flipping
from dreluop.faults.reached import ActivationCalls
from dreluop.modules import SReLU

Where = Literal["weights", "caps", "activations", "inputs_of_activations"]
PLACES = get_args(Where)
STORED = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8)


@dataclass
class Injection:
    """What ``bit_flips`` did.

    Attributes:
        flips: bits that were flipped so far.
        exposed: bits that might have been.
    """

    flips: int = 0
    exposed: int = 0


@dataclass(frozen=True)
class _Plan:
    rate: float | None
    count: int | None
    bits: Sequence[int] | None
    generator: torch.Generator

    def bits_of(self, words: Tensor) -> Sequence[int]:
        width = flipping.width_of(words.dtype)
        if self.bits is None:
            return range(width)
        if max(self.bits) >= width:
            raise ValueError(f"bits: got {max(self.bits)}; expected numbers below {width}, the bits of an element")
        return self.bits

    def draw(self, total: int) -> Tensor:
        """The positions of the bits that flip, out of so many."""
        count = self.count
        if count is None:
            assert self.rate is not None
            count = flipping.binomial(total, self.rate, self.generator)
        elif count > total:
            raise ValueError(f"flips: got {count}; expected at most {total}, the bits that there are")
        return flipping.distinct(total, count, self.generator)


@contextmanager
def bit_flips(
    model: nn.Module,
    rate: float | None = None,
    *,
    flips: int | None = None,
    where: Where = "weights",
    dtype: torch.dtype | None = None,
    bits: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Injection]:
    """Flip bits in a model's memory inside the block; afterwards it is as it was, bit for bit, also after an exception.

    Each bit flips on its own with probability ``rate``, the bit error rate, or exactly ``flips`` of them do, each set
    as likely as any other. Time and memory follow the number of flips, not that of the bits; with ``dtype`` the tensors
    are copied.

    Args:
        model: on any devices. In the block its tensors hold the faults: do not train or save it there.
        rate: in [0, 1]. Give this or ``flips``.
        flips: with weights and caps in the whole model; with activations in each of them that a forward pass reaches.
        where: ``"weights"``: all parameters but caps, each once, drawn when the block is entered. ``"caps"``: those of
            ``DReLU``, ``SReLU`` and batch norms with caps. ``"inputs_of_activations"``: the values before ReLU, GELU, a
            capped activation and the like (``reached.NAMES``), as modules, functions or methods, drawn anew in each
            forward pass of the model. ``"activations"``: the values after them, as they lie in memory between layers.
        dtype: the type in which weights or caps are stored, float64, float32, float16, bfloat16 or int8; None: the
            type they have. With another, all are rounded to it in the block. int8 has a scale for each index of
            dimension 0, the largest magnitude / 127, and is for tensors of two dimensions and more; scales and other
            tensors are not hit.
        bits: those of an element that may flip, 0 the least significant; None: all.
        generator: on the CPU, whatever the model's device, so that a seed gives the same faults everywhere; None:
            torch's default one.

    Yields:
        An ``Injection``.

    Raises:
        TypeError: an argument, or a parameter of the model, is of another type.
        ValueError: rate is not in [0, 1], rate and flips are both given or both not, or flips are more than the bits;
            where, dtype or bits are not as above; the model has no such tensors or one without values, or reaches no
            such activation when it is called.
    """
    _check(model, rate, flips, where, dtype, generator)
    plan = _Plan(
        None if rate is None else checks.number("rate", rate),
        None if flips is None else checks.integer("flips", flips),
        _checked_bits(bits),
        generator if generator is not None else torch.default_generator,
    )
    injection = Injection()
    with ExitStack() as undo:
        if where in ("weights", "caps"):
            _hit_tensors(_weights(model) if where == "weights" else _caps(model), plan, dtype, injection, undo)
        else:
            _hit_activations(model, where, plan, injection, undo)
        yield injection


def _hit_tensors(
    tensors: dict[str, Tensor], plan: _Plan, dtype: torch.dtype | None, injection: Injection, undo: ExitStack
) -> None:
    stored = [_Stored(t, dtype) for t in tensors.values() if dtype != torch.int8 or t.ndim >= 2]
    if not stored:
        raise ValueError("dtype: got torch.int8; expected a tensor of two dimensions or more among those that are hit")
    bits = [plan.bits_of(one.words) for one in stored]
    counts = [one.words.numel() * len(own) for one, own in zip(stored, bits, strict=True)]
    injection.exposed = sum(counts)
    positions = plan.draw(injection.exposed)
    injection.flips = len(positions)
    for one, own, of_tensor in zip(stored, bits, _by_tensor(positions, counts), strict=True):
        undo.callback(one.restore)
        one.flip(of_tensor, own)


def _by_tensor(positions: Tensor, counts: Sequence[int]) -> Iterator[Tensor]:
    """Positions in tensors of so many bits, one behind the other, as positions in each."""
    ends = torch.tensor(counts).cumsum(0)
    splits = torch.searchsorted(positions, ends).tolist()
    for begin, split, end, count in zip((0, *splits), splits, ends.tolist(), counts, strict=False):
        yield positions[begin:split] - (end - count)


class _Stored:
    """A tensor in the dtype in which it is stored."""

    def __init__(self, tensor: Tensor, dtype: torch.dtype | None) -> None:
        self.tensor = tensor.detach()
        self.scale: Tensor | None = None
        self.undo: Callable[[], Any] = lambda: None
        self.is_copy = dtype is not None and dtype != tensor.dtype
        if not self.is_copy:
            held = self.tensor
        elif dtype == torch.int8:
            peaks = self.tensor.flatten(1).abs().amax(1).view(-1, *[1] * (tensor.ndim - 1))
            self.scale = torch.where(peaks > 0, peaks, 127) / 127
            held = (self.tensor / self.scale).round().clamp(-127, 127).to(torch.int8)
        else:
            held = self.tensor.to(dtype)
        self.held = held
        self.words = flipping.as_words(held)

    @torch.no_grad()
    def flip(self, positions: Tensor, bits: Sequence[int]) -> None:
        where, words = flipping.flip(self.words, positions, bits)
        if not self.is_copy:
            self.undo = lambda: self.words.__setitem__(where, words)
            return
        clean = self.tensor.clone()
        self.undo = lambda: self.tensor.copy_(clean)
        held = self.held.to(self.tensor.dtype)
        self.tensor.copy_(held if self.scale is None else held * self.scale)

    @torch.no_grad()
    def restore(self) -> None:
        self.undo()


def _hit_activations(model: nn.Module, where: Where, plan: _Plan, injection: Injection, undo: ExitStack) -> None:
    def hit(t: Tensor) -> None:
        with torch.no_grad():
            words = flipping.as_words(t)
            bits = plan.bits_of(words)
            total = words.numel() * len(bits)
            positions = plan.draw(total)
            injection.exposed += total
            injection.flips += len(positions)
            flipping.flip(words, positions, bits)

    def on_input(x: Tensor, written_over: bool) -> Tensor:
        x = x if written_over else x.clone()
        hit(x)
        return x

    calls = ActivationCalls(on_input, None) if where == "inputs_of_activations" else ActivationCalls(None, hit)
    undo.callback(model.register_forward_pre_hook(calls.start_pass).remove)
    undo.callback(model.register_forward_hook(calls.end_pass, always_call=True).remove)
    undo.enter_context(calls)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    caps = {id(cap) for cap in _caps_of(model).values()}
    found = {name: p for name, p in model.named_parameters() if id(p) not in caps}
    if not found:
        raise ValueError(f"model: a {type(model).__name__} has no parameters but caps; expected at least one")
    return _each_once(found)


def _caps(model: nn.Module) -> dict[str, Tensor]:
    found = _caps_of(model)
    if not found:
        raise ValueError(f"model: a {type(model).__name__} has no DReLU or SReLU; expected at least one")
    return _each_once(found)


def _each_once(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that have elements, each memory once.

    Raises:
        TypeError, ValueError: one cannot be hit, or shares a part of its memory.
    """
    found: dict[Any, str] = {}
    spans: list[tuple[int, int, str]] = []
    for name, t in tensors.items():
        _check_tensor(name, t)
        memory = (t.device, t.data_ptr(), t.dtype, tuple(t.shape), t.stride())
        if t.numel() == 0 or memory in found:
            continue
        found[memory] = name
        last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        if last + 1 < t.numel():
            raise ValueError(f"{name}: got strides {t.stride()} for shape {tuple(t.shape)}; expected memory of its own")
        spans.append((t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size(), name))
    spans.sort()
    for (_, end, name), (begin, _, other) in pairwise(spans):
        if begin < end:
            raise ValueError(f"{other}: shares memory with {name}; expected memory of its own, or all of another's")
    return {name: tensors[name] for name in found.values()}


def _caps_of(model: nn.Module) -> dict[str, Tensor]:
    """What the caps are made of: a parametrized one has originals."""
    capped = ((name, m) for name, m in model.named_modules() if isinstance(m, LearnedCap | SReLU))
    parts = [(f"{name}.cap" if name else "cap", cap_state.held(m)) for name, m in capped]
    return {name if i == 0 else f"{name}, part {i}": t for name, held in parts for i, t in enumerate(held)}


def _check_tensor(name: str, t: Tensor) -> None:
    if type(t) not in (Tensor, nn.Parameter):
        raise TypeError(f"{name}: got a {type(t).__name__}; expected a plain tensor or nn.Parameter")
    if t.layout is not torch.strided or t.dtype.is_complex or t.dtype == torch.bool:
        raise TypeError(f"{name}: got dtype {t.dtype}, layout {t.layout}; expected strided real numbers")
    if place := checks.place_without_values(t):
        raise ValueError(f"{name}: got a tensor {place}; expected one with values")


def _check(
    model: Any, rate: float | None, flips: int | None, where: Any, dtype: Any, generator: torch.Generator | None
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}; expected a torch.nn.Module")
    if where not in PLACES:
        raise ValueError(f"where: got {where!r}; expected one of {', '.join(PLACES)}")
    if (rate is None) == (flips is None):
        raise ValueError("rate, flips: got both or neither; expected one of them")
    if rate is not None and not 0 <= checks.number("rate", rate) <= 1:
        raise ValueError(f"rate: got {rate}; expected a probability, in [0, 1]")
    if flips is not None and checks.integer("flips", flips) < 0:
        raise ValueError(f"flips: got {flips}; expected at least 0")
    if dtype is not None and dtype not in STORED:
        raise ValueError(f"dtype: got {dtype}; expected one of {', '.join(map(str, STORED))}")
    if where not in ("weights", "caps"):
        if dtype is not None:
            raise ValueError(f'dtype: got {dtype}; expected None with where="{where}", whose values keep their dtype')
        if any(hasattr(m, "_orig_mod") for m in model.modules()):
            raise ValueError("model: got one of torch.compile, which hides its activations; expected its _orig_mod")
    if generator is not None and (not isinstance(generator, torch.Generator) or generator.device.type != "cpu"):
        got = f"one on {generator.device}" if isinstance(generator, torch.Generator) else type(generator).__name__
        raise TypeError(f"generator: got {got}; expected a torch.Generator on the CPU")


def _checked_bits(bits: Sequence[int] | None) -> list[int] | None:
    if bits is None:
        return None
    if not isinstance(bits, Iterable):
        raise TypeError(f"bits: got {type(bits).__name__}; expected several ints")
    found = [checks.integer("bits", bit) for bit in bits]
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise ValueError(f"bits: got {found}; expected at least one, different, not negative")
    return found
