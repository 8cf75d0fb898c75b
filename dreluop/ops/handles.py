"""The operators, bound once: resolving `torch.ops.<namespace>.<name>` on every call costs more than a small kernel.

Their arguments are those of `dreluop.ops.schemas`; optional ones may be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dreluop.ops import schemas
from dreluop.ops.call import Call


class Operators:
    """All operators, in their overloads for one backend or for the default rule; to be fused, where they can be.

    Attributes:
        backend: the name of the overloads; None for the default rule.
        plain_derivatives: whether ``capped_relu_backward`` and ``capped_relu_jvp`` consist of differentiable torch
            operators.
    """

    backend: str | None
    plain_derivatives: bool

    capped_relu: Callable[..., Tensor]
    capped_relu_: Callable[..., None]
    capped_relu_with_aux: Callable[..., tuple[Tensor, Tensor, Tensor]]
    capped_relu_with_aux_: Callable[..., tuple[Tensor, Tensor]]
    capped_relu_backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    capped_relu_jvp: Callable[..., Tensor]
    capped_relu_surrogate_backward: Callable[..., Tensor]
    cap_saturation: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
    cap_penalty: Callable[[Sequence[Tensor], float], Tensor]
    cap_penalty_backward: Callable[[Tensor, Sequence[Tensor], float], list[Tensor]]

    def __init__(self, which: str) -> None:
        self.backend = which or None
        self.plain_derivatives = which == schemas.FUSED
        namespace = getattr(torch.ops, schemas.NAMESPACE)
        for name in schemas.SCHEMAS:
            has = which in schemas.overloads_of(name)
            setattr(self, name, getattr(getattr(namespace, name), which if which and has else "default"))

    def activate(self, call: Call) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y, the packed mask if wanted, and the penalty if ``balancer`` is a number.

        The one place that chooses among out of place and in place, with and without the other two.
        """
        x, cap, dim, mask, balancer, bias, residual, zeroed, inplace = call
        if mask or balancer is not None:
            if inplace:
                packed, penalty = self.capped_relu_with_aux_(*call.of_operator)
                y = x
            else:
                y, packed, penalty = self.capped_relu_with_aux(*call.of_operator)
            return y, packed if mask else None, penalty if balancer is not None else None
        # Torch handles fewer arguments faster.
        arguments: tuple[Any, ...] = (x, cap, dim)
        if zeroed:
            arguments = (x, cap, dim, bias, residual, zeroed)
        elif bias is not None or residual is not None:
            arguments = (x, cap, dim, bias, residual)
        if not inplace:
            return self.capped_relu(*arguments), None, None
        self.capped_relu_(*arguments)
        return x, None, None

    def values(self, call: Call) -> Tensor | tuple[Tensor, Tensor]:
        """y, or y and the penalty: what a call returns where nothing is saved for backward."""
        y, _, penalty = self.activate(call._replace(mask=False) if call.mask else call)
        return y if penalty is None else (y, penalty)


BY_OVERLOAD = {which: Operators(which) for which in (*schemas.OVERLOADS, schemas.FUSED)}
DEFAULT = BY_OVERLOAD[schemas.DEFAULT]
REFERENCE = BY_OVERLOAD["reference"]
TRITON = BY_OVERLOAD["triton"]
FUSED = BY_OVERLOAD[schemas.FUSED]
