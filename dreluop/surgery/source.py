"""Stand-in until the source transformation is in: how a rewritten module is recognized."""

from __future__ import annotations

from torch import nn


def is_rewritten(module: nn.Module) -> bool:
    """Whether surgery generated the class of a module."""
    members = vars(type(module))
    return members.get("rewritten") is not None or members.get("new_forward") is not None
