"""Batch normalization with a capped activation in one operator: the function, and modules for 1, 2 and 3 dimensions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import handle_torch_function

from dreluop._internal import cap_state, checks
from dreluop._internal.overrides import has_override
from dreluop.autograd import batch_norm
from dreluop.functional import cap_penalty
from dreluop.ops.batch_norm import DIM


def capped_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    cap: Tensor | float,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> Tensor:
    """``capped_relu(batch_norm(x) + residual, cap)``, by one operator for training and inference.

    Saves x and the statistics for backward, but neither the normalized x nor y; with a residual two bits per element.
    Where the compiled kernels do not serve, and for transforms, compilers, second derivatives and neuron caps, torch's
    batch norm and ``capped_relu`` run, whose last bits differ. Source: Ioffe & Szegedy, arXiv 1502.03167, and
    ``capped_relu``.

    Args:
        x: activations of shape ``(N, C, ...)``, any strides; float32, float64, float16 or bfloat16.
        running_mean, running_var: shape ``(C,)`` each, or None for both; updated in place in training, else used.
        weight, bias: shape ``(C,)``, or None.
        cap: as in ``capped_relu``, with channels in dimension 1.
        training: whether to normalize by the mean and variance of x.
        momentum: weight of this batch in the running statistics.
        eps: added to the variance.
        residual: added before the activation; x's shape and dtype. Half types are rounded once, after the sum.

    Returns:
        y with x's shape and dtype and the strides of ``torch.empty_like(x)``.

    Raises:
        TypeError: an argument is not a tensor or not of a float dtype, residual has not x's dtype, training is no bool,
            momentum or eps no number.
        ValueError: a shape or device does not fit x; eps is not finite and > 0; x has one value per channel in
            training; one of the running statistics is given without the other, or neither outside training.
    """
    tensors = (x, running_mean, running_var, weight, bias, cap, residual)
    if has_override(tensors):
        result: Tensor = handle_torch_function(
            capped_batch_norm, [t for t in tensors if t is not None], x, running_mean, running_var, weight, bias, cap,
            training=training, momentum=momentum, eps=eps, residual=residual,
        )  # fmt: skip
        return result
    parameters = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    return batch_norm.run(batch_norm.NormCall.checked(x, cap, parameters, residual, training, momentum, eps))


class BatchNormActivation(nn.modules.batchnorm._BatchNorm):
    """A batch norm that is called with a residual, and computes an activation too."""


class _BatchNormDReLU(BatchNormActivation, cap_state.LearnedCap):
    """Batch norm and then ``DReLU``: batch norm's state and a parameter ``cap``.

    Called as ``module(x, residual=None)``. It is a batch norm of torch: what fuses or replaces those by their class,
    such as ``torch.nn.utils.fusion``, drops the activation. ``torch.fx`` takes a call of it for one node, as one of
    torch's.

    Args:
        num_features: channels, dimension 1 of x.
        eps, momentum, affine, track_running_stats, device, dtype: as in torch's batch norm.
        init: initial value of every cap, as in ``DReLU``.
        num_parameters: 1 for one cap, or ``num_features`` for one per channel; None: one per channel.

    Raises:
        TypeError, ValueError: as ``DReLU``; ValueError also for another number of caps.
    """

    cap: nn.Parameter
    dim = DIM

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        init: float = 100.0,
        num_parameters: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        num_features = checks.integer("num_features", num_features)
        if num_features < 0:
            raise ValueError(f"num_features: got {num_features}; expected at least 0")
        caps = num_features if num_parameters is None else checks.positive_int("num_parameters", num_parameters)
        if caps not in (1, num_features):
            raise ValueError(f"num_parameters: got {caps}; expected 1, or num_features, {num_features}")
        checks.float_dtype("dtype", dtype)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.init = checks.initial_cap(init)
        self.cap = nn.Parameter(torch.empty(caps, device=device, dtype=dtype))
        self.reset_cap()

    def reset_parameters(self) -> None:
        """Reset the batch norm, and every cap to ``init``."""
        super().reset_parameters()
        # The constructor of torch's batch norm resets before there is a cap.
        if self._parameters.get("cap") is not None:
            self.reset_cap()

    def reset_cap(self) -> None:
        """Set every cap to ``init``."""
        nn.init.constant_(self.cap, checks.initial_cap(self.init, self.cap.dtype))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if isinstance(x, fx.Proxy):
            return self._node(x, residual)
        self._check_input_dim(x)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                # A cumulative average.
                momentum = 1.0 / float(self.num_batches_tracked)
        tracks = not self.training or self.track_running_stats
        return capped_batch_norm(
            x,
            self.running_mean if tracks else None,
            self.running_var if tracks else None,
            self.weight,
            self.bias,
            self.cap,
            training=self._normalizes_by_batch(),
            momentum=momentum,
            eps=self.eps,
            residual=residual,
        )

    def _normalizes_by_batch(self) -> bool:
        return self.training or (self.running_mean is None and self.running_var is None)

    @torch.no_grad()
    def pre_activation(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """What a call with the same arguments caps; the running statistics stay as they are.

        The residual may be of another shape or dtype, as in a sum.
        """
        by_batch = self._normalizes_by_batch()
        statistics = {} if by_batch else {"running_mean": self.running_mean, "running_var": self.running_var}
        parameters = {"running_mean": None, "running_var": None, "weight": self.weight, "bias": self.bias, **statistics}
        is_fused = residual is None or (residual.shape, residual.dtype) == (x.shape, x.dtype)
        call = batch_norm.NormCall.checked(
            x, self.cap, parameters, residual if is_fused else None, by_batch, 0.0, self.eps
        )
        total = batch_norm.before_cap(call)
        return total if is_fused or residual is None else total + residual

    def _node(self, x: fx.Proxy, residual: Any) -> Tensor:
        # Traced, it would keep the mode that it is in now.
        tracer: Any = x.tracer
        args = (x,) if residual is None else (x, residual)
        node: Tensor = tracer.create_proxy("call_module", tracer.path_of_module(self), args, {})
        return node

    def penalty(self, balancer: float) -> Tensor:
        """``balancer * sum(cap ** 2)``; for a whole model ``dreluop.cap_penalty(model, balancer)`` is one call."""
        return cap_penalty(self.cap, balancer)

    def extra_repr(self) -> str:
        caps = ", num_parameters=1" if self.cap.numel() != self.num_features else ""
        return f"{super().extra_repr()}, init={self.init:g}{caps}"

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        # convert_sync_batchnorm would replace this module and drop its activation. It asks for the children first.
        if sys._getframe(1).f_code is nn.SyncBatchNorm.convert_sync_batchnorm.__func__.__code__:  # type: ignore[attr-defined]
            raise TypeError(
                f"convert_sync_batchnorm: got a {type(self).__name__}, which has no synchronized form; use "
                "nn.BatchNorm and DReLU apart"
            )
        return super().named_children()

    def __prepare_scriptable__(self) -> Any:
        raise TypeError(f"torch.jit.script: got a {type(self).__name__}, which it cannot compile; use torch.export")


class BatchNormDReLU1d(_BatchNormDReLU, nn.BatchNorm1d):
    __doc__ = _BatchNormDReLU.__doc__


class BatchNormDReLU2d(_BatchNormDReLU, nn.BatchNorm2d):
    __doc__ = _BatchNormDReLU.__doc__


class BatchNormDReLU3d(_BatchNormDReLU, nn.BatchNorm3d):
    __doc__ = _BatchNormDReLU.__doc__
