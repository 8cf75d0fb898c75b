"""Weights that show when a bit of theirs has flipped, at no memory: ``protect_weights``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreluop._internal import checks
from dreluop.faults.bits import as_words, width_of

# Bits of the sign and the exponent, the ones that matter.
CHECKED_BITS = {torch.float16: 6, torch.bfloat16: 9, torch.float32: 9, torch.float64: 12}
# Three numbers stand for a whole tensor: its limits are kept so many times, small tensors three times.
LIMITS_COPIES, SMALL_COPIES = 5, 3
# Where more of a tensor's weights fail their check, or more of a small tensor's differ from their copies, they were
# changed by something else than faults. Of a few weights half may be hit.
MOST_FAULTY, MOST_RESTORED, FEW = 0.25, 0.75, 32


@dataclass(frozen=True)
class Repair:
    """What ``ProtectedWeights.repair`` changed.

    Attributes:
        restored: elements of small tensors that two of three copies put right.
        dropped: elements that failed their check and became the mean of their tensor.
        checked: elements that were looked at.
    """

    restored: int
    dropped: int
    checked: int


class ProtectedWeights(nn.Module):
    """What ``protect_weights`` knows of a model's weights: every tensor's range and mean, and copies of small tensors.

    A module, so that it can be saved (``state_dict``), moved, and hit by ``bit_flips`` like the model itself.
    """

    def __init__(self, weights: dict[str, Tensor], copies_below: int) -> None:
        super().__init__()
        self.names = list(weights)
        self.small = [name for name, t in weights.items() if t.numel() < copies_below]
        # By tensor: least, largest and mean value, one row a copy; and the other copies of small ones.
        self.limits = _parameters(_limits(t).repeat(LIMITS_COPIES, 1) for t in weights.values())
        small = (weights[name] for name in self.small)
        self.copies = _parameters(t.repeat(SMALL_COPIES - 1, *[1] * t.ndim) for t in small)

    @torch.no_grad()
    def repair(self, model: nn.Module) -> Repair:
        """Put right what can be, and drop the rest: a look at every weight, for load time or between batches.

        Small tensors, and the limits of all, become what most of their copies say, bit by bit. Then an element
        whose check bit or range does not fit becomes the mean of its tensor, as a lost weight costs a network little,
        and a lost scale or bias less than a wrong one.

        Args:
            model: the one of ``protect_weights``, on any device.

        Raises:
            ValueError: the model has other weights, or so many fail that they were trained or loaded since; nothing
                is changed then.
        """
        weights = _weights_of(model)
        self._check(weights)
        limits = [_vote(copies) for copies in self.limits]
        for (name, t), own in zip(weights.items(), limits, strict=True):
            self._check_untouched(name, t, own)
        total = sum(t.numel() for t in weights.values())
        restored = dropped = 0
        for (name, t), own, copies in zip(weights.items(), limits, self.limits, strict=True):
            copies.copy_(own.expand_as(copies))
            if name in self.small:
                restored += self._restore(name, t)
            wrong = ~_fits(t, own)
            dropped += int(wrong.sum())
            t.masked_fill_(wrong, _coded(own[2]).item())
        return Repair(restored, dropped, total)

    def _check_untouched(self, name: str, t: Tensor, limits: Tensor) -> None:
        if name in self.small:
            voted = self._voted(name, t)
            faulty, most = int((as_words(voted) != as_words(t)).sum()), MOST_RESTORED
        else:
            faulty, most = int((~_fits(t, limits)).sum()), MOST_FAULTY
        if t.numel() >= FEW and faulty > most * t.numel():
            raise ValueError(
                f"{name}: {faulty:,} of {t.numel():,} weights fail their check; they were changed since "
                "protect_weights, by training or loading, say: call it again"
            )

    def _voted(self, name: str, t: Tensor) -> Tensor:
        return _vote(torch.cat([t[None], self.copies[self.small.index(name)].to(t.device)]))

    def _restore(self, name: str, t: Tensor) -> int:
        voted, copies = self._voted(name, t), self.copies[self.small.index(name)]
        changed = int((as_words(voted) != as_words(t)).sum())
        t.copy_(voted)
        copies.copy_(voted.expand_as(copies))
        return changed

    def _check(self, weights: dict[str, Tensor]) -> None:
        if list(weights) != self.names:
            raise ValueError(f"model: got {len(weights)} tensors of weights; expected the {len(self.names)} protected")
        for (name, t), limits in zip(weights.items(), self.limits, strict=True):
            if t.dtype != limits.dtype:
                raise ValueError(f"{name}: got {t.dtype}; expected {limits.dtype}, as protect_weights met it")
        for name, copies in zip(self.small, self.copies, strict=True):
            if copies.shape[1:] != weights[name].shape:
                raise ValueError(f"{name}: got shape {tuple(weights[name].shape)}; expected {tuple(copies.shape[1:])}")


@torch.no_grad()
def protect_weights(model: nn.Module, *, copies_below: int = 257) -> ProtectedWeights:
    """Let every weight of a model show a flipped bit of its sign or exponent. In place, at no memory for large tensors.

    The least significant bit of each weight becomes the parity of its sign and exponent, which moves it by one unit in
    the last place at most. Of every tensor the range is kept, and of small ones (biases, batch norms, a first
    convolution), where one wrong value costs most, two copies. ``ProtectedWeights.repair(model)`` then finds and mends
    what was hit. It complements ``dreluop.surgery.protect``, which bounds what a missed fault does.

    Args:
        model: on any device; all its parameters are covered. Trained or loaded afterwards it needs this call again.
        copies_below: tensors of fewer elements are kept three times.

    Returns:
        ProtectedWeights: keep it beside the model.

    Raises:
        TypeError: model is no module, or a parameter is no plain tensor of float16, bfloat16, float32 or float64.
        ValueError: a parameter holds NaN or infinity, or has no values; copies_below is negative. Nothing is changed
            then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}; expected a torch.nn.Module")
    if checks.integer("copies_below", copies_below) < 0:
        raise ValueError(f"copies_below: got {copies_below}; expected at least 0")
    weights = _weights_of(model)
    for name, t in weights.items():
        if not bool(t.isfinite().all()):
            raise ValueError(f"{name}: got NaN or infinity; expected finite weights")
    for t in weights.values():
        t.copy_(_coded(t))
    return ProtectedWeights(weights, copies_below)


def _weights_of(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.detach() for name, p in model.named_parameters() if p.numel()}
    if not found:
        raise ValueError(f"model: a {type(model).__name__} has no parameters; expected at least one")
    for name, t in found.items():
        if type(t) is not Tensor or t.dtype not in CHECKED_BITS:
            known = ", ".join(map(str, CHECKED_BITS))
            raise TypeError(f"{name}: got a {type(t).__name__} of {t.dtype}; expected a plain tensor of {known}")
        if place := checks.place_without_values(t):
            raise ValueError(f"{name}: got a tensor {place}; expected one with values")
    return found


def _limits(t: Tensor) -> Tensor:
    return torch.stack([*t.aminmax(), t.double().mean().to(t.dtype)])


def _fits(t: Tensor, limits: Tensor) -> Tensor:
    low, high, _ = limits.to(t.device)
    words = as_words(t)
    fits: Tensor = ((words & 1) == _parity(words, t.dtype)) & (t >= low) & (t <= high)
    return fits


def _coded(t: Tensor) -> Tensor:
    """t with the parity of its checked bits as its last bit."""
    words = as_words(t)
    return ((words & ~1) | _parity(words, t.dtype)).view(t.dtype)


def _parity(words: Tensor, dtype: torch.dtype) -> Tensor:
    count = CHECKED_BITS[dtype]
    # The sign is shifted in from the left.
    found = (words >> (width_of(dtype) - count)) & ((1 << count) - 1)
    for step in (8, 4, 2, 1):
        found = found ^ (found >> step)
    return found & 1


def _vote(copies: Tensor) -> Tensor:
    """What most of an odd number of copies say, bit by bit; copies lie along the first dimension."""
    words = as_words(copies.detach())
    found = torch.zeros_like(words[0])
    for bit in range(width_of(copies.dtype)):
        most = ((words >> bit) & 1).sum(0) > len(words) // 2
        found |= most.to(words.dtype) << bit
    return found.view(copies.dtype)


def _parameters(tensors: Iterable[Tensor]) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(t.clone(), requires_grad=False) for t in tensors])
