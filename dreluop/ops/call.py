"""The arguments of one call, as one value: ``Call`` of the activation, ``BackwardCall`` of its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from dreluop._internal import checks, dtensor
from dreluop._internal.zeroed import zeroed


class Call(NamedTuple):
    """Arguments of the activation. All but ``inplace`` are those of the operator ``capped_relu_with_aux``, in order.

    Attributes:
        mask: whether the packed mask is wanted, to be saved for backward in place of y.
        balancer: the weight of the penalty, if that is wanted.
        zeroed: what else becomes +0 (``ops.schemas``).
    """

    x: Tensor
    cap: Tensor
    dim: int = 1
    mask: bool = False
    balancer: float | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    zeroed: int = 0
    inplace: bool = False

    @property
    def of_operator(self) -> tuple[Any, ...]:
        """Those of the operator, without a last one that has its default."""
        return self[:8] if self.zeroed else self[:7]

    @classmethod
    def checked(
        cls,
        x: Tensor,
        cap: Tensor | float,
        dim: int,
        inplace: bool,
        save: str,
        balancer: float | None,
        bias: Tensor | None,
        residual: Tensor | None,
        above: str = "cap",
        nan: str = "propagate",
    ) -> Call:
        """What ``dreluop.capped_relu`` was given, or the error that names what is wrong with it."""
        checks.float_tensor("x", x)
        dim = checks.integer("dim", dim)
        cap = checks.cap_for(x, cap, dim)
        if save != "output":
            checks.save_mode(save)
        if inplace is not False:
            inplace = checks.flag("inplace", inplace)
        if balancer is not None:
            balancer = checks.penalty_weight(balancer)
        if bias is not None:
            checks.bias_for(x, cap, bias, dim)
        if residual is not None:
            checks.residual_for(x, residual)
        if dtensor.any_distributed(x, cap, bias, residual):
            cap = dtensor.checked_cap(x, cap, bias=bias, residual=residual)
            if inplace and save == "mask":
                dtensor.refuse_mask_in_place()
        return cls(x, cap, dim, save == "mask", balancer, bias, residual, zeroed(above, nan), inplace)


class BackwardCall(NamedTuple):
    """Arguments of the operator ``capped_relu_backward`` (``ops.schemas``).

    Attributes:
        grad: the gradient of y.
        saved, order: what forward saved, y or the packed mask, and the order of the mask's dimensions.
        need_x, need_cap: which gradients are wanted; that of the bias where ``bias`` is given.
        balancer, grad_penalty: of the penalty that forward returned, and its gradient.
        zeroed: as forward was given it.
    """

    grad: Tensor
    saved: Tensor
    cap: Tensor
    dim: int
    order: Sequence[int]
    need_x: bool
    need_cap: bool
    balancer: float | None = None
    grad_penalty: Tensor | None = None
    bias: Tensor | None = None
    zeroed: int = 0

    @property
    def of_operator(self) -> tuple[Any, ...]:
        """All, without the last ones that have their defaults."""
        if self.zeroed:
            return self
        return self[:9] if self.bias is None else self[:10]
