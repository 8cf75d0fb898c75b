"""What a surgery found and did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dreluop.tables import text_table

Modes = Literal["both", "train", "eval"]
Action = Literal["replaced", "fused", "left"]


@dataclass(frozen=True)
class Site:
    """One place where a forward pass calls ReLU, ReLU6 or Hardtanh(0, c).

    Attributes:
        name: dotted name of the D-ReLU that serves it, as in ``model.named_modules()``.
        source: what stood there: ``module relu, call 2 of 3``, ``F.relu``, ``Tensor.relu_``.
        owner: dotted name and class of the module whose forward makes the call.
        bound: the fixed bound that was there: 6 for ReLU6, c for Hardtanh(0, c), None for ReLU.
        inplace: whether it wrote over its input.
        modes: the modes in which it is reached: auxiliary heads in ``"train"`` only.
        shape: of its input, as ``example_input`` gave it; None without one.
        cap_shape: of its caps; None where it was left.
        action: ``"fused"``: replaced together with the residual sum before it.
        reason: why it was left, or replaced but not as asked (a sum not fused, caps shared); empty if there is nothing
            to say.
    """

    name: str
    source: str
    owner: str
    bound: float | None
    inplace: bool
    modes: Modes
    shape: tuple[int, ...] | None = None
    cap_shape: tuple[int, ...] | None = None
    action: Action = "left"
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """The sites of a model in the order in which its modules are called, and what could not be looked into.

    Attributes:
        sites: all that were found, those left too.
        untraced: modules whose forward could not be written anew and may have kept a ReLU, by name, with the reason:
            torch.fx cannot trace it, or it does more than a graph holds. Activation modules inside them were replaced
            as modules; functional calls (``F.relu``) in their forward were left.
    """

    sites: tuple[Site, ...]
    untraced: Mapping[str, str] = field(default_factory=dict)

    @property
    def replaced(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.action != "left")

    @property
    def fused(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.action == "fused")

    @property
    def left(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.action == "left")

    def __str__(self) -> str:
        header = ("site", "was", "in", "mode", "input", "caps", "done", "note")
        rows = [
            (
                site.name,
                site.source + (f", bound {site.bound:g}" if site.bound is not None else ""),
                site.owner,
                site.modes,
                _shape(site.shape),
                _shape(site.cap_shape),
                site.action,
                site.reason,
            )
            for site in self.sites
        ]
        counts = f"{len(self.replaced)} of {len(self.sites)} sites replaced, {len(self.fused)} of them fused with a sum"
        parts = [text_table(header, rows)] if rows else []
        parts += [f"not traced: {name or '(model)'}: {reason}" for name, reason in self.untraced.items()]
        return "\n".join([*parts, counts])


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape))
