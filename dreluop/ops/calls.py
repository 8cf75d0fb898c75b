"""The operators, bound once: resolving `torch.ops.<namespace>.<name>` on every call costs more than a small kernel.

Their arguments are those of `dreluop.ops.schemas`; optional ones may be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dreluop.ops import schemas


class Operators:
    """All operators, in their overloads for one backend or for the default rule; to be fused, where they can be.

    Attributes:
        backend: the name of the overloads; None for the default rule.
        plain_derivatives: whether ``backward`` and ``tangent`` are functions of differentiable torch operators.
    """

    backend: str | None
    plain_derivatives: bool

    forward: Callable[..., Tensor]
    forward_: Callable[..., None]
    forward_extra: Callable[..., tuple[Tensor, Tensor, Tensor]]
    forward_extra_: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    tangent: Callable[[Tensor, Tensor | None, Tensor, Tensor, int, Sequence[int]], Tensor]
    surrogate: Callable[..., Tensor]
    saturation: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
    penalty: Callable[[Sequence[Tensor], float], Tensor]
    penalty_backward: Callable[[Tensor, Sequence[Tensor], float], list[Tensor]]

    def __init__(self, which: str) -> None:
        self.backend = which or None
        self.plain_derivatives = which == schemas.FUSED
        namespace = getattr(torch.ops, schemas.NAMESPACE)
        for name in schemas.SCHEMAS:
            has = which in schemas.overloads_of(name)
            setattr(self, name, getattr(getattr(namespace, name), which if which and has else "default"))


BY_OVERLOAD = {which: Operators(which) for which in (*schemas.OVERLOADS, schemas.FUSED)}
DEFAULT = BY_OVERLOAD[schemas.DEFAULT]
REFERENCE = BY_OVERLOAD["reference"]
TRITON = BY_OVERLOAD["triton"]
FUSED = BY_OVERLOAD[schemas.FUSED]
