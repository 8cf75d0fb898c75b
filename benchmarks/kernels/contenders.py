"""What a user could write instead of ``dreluop.capped_relu``, and the copies that bound how fast any of it can be.

Tests take their clamp references from here too, so that what is timed is what is tested. Every function takes x (any
shape, a float dtype), a cap (layer, channel or neuron: see ``dreluop.granularity``) and the channel dimension, and
returns y with x's shape and dtype. Those that do not work in place also take a bias and a residual to be added first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import dreluop
from dreluop.granularity import bias_view, broadcast_shape

Activation = Callable[..., Tensor]


def cap_view(x: Tensor, cap: Tensor, dim: int = 1) -> Tensor:
    """The cap in x's dtype and in the shape that broadcasts against x."""
    return cap.to(x.dtype).reshape(broadcast_shape(x.shape, cap.shape, dim))


def added(x: Tensor, dim: int, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """``(x + bias) + residual`` as eager writes it, rounded after each sum."""
    if bias is not None:
        x = x + bias.reshape(bias_view(x.shape, bias.shape, dim))
    return x if residual is None else x + residual


def relu_minimum(
    x: Tensor, cap: Tensor, dim: int = 1, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """``relu(minimum(x, cap))``: equal to ``capped_relu`` for every cap, up to the sign of zero."""
    x = added(x, dim, bias, residual)
    return torch.relu(torch.minimum(x, cap_view(x, cap, dim)))


def relu_minimum_(x: Tensor, cap: Tensor, dim: int = 1) -> Tensor:
    """``relu_minimum`` written over x; only without gradients, as ``out=`` has none."""
    return torch.minimum(x, cap_view(x, cap, dim), out=x).relu_()


def clamp_tensor(
    x: Tensor, cap: Tensor, dim: int = 1, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """``clamp(x, zeros, cap)``: equal to ``capped_relu`` for caps >= 0 only; a negative cap gives the cap, not 0."""
    x = added(x, dim, bias, residual)
    m = cap_view(x, cap, dim)
    return torch.clamp(x, torch.zeros_like(m), m)


def clamp_tensor_(x: Tensor, cap: Tensor, dim: int = 1) -> Tensor:
    """``clamp_tensor`` written over x."""
    m = cap_view(x, cap, dim)
    return x.clamp_(torch.zeros_like(m), m)


def ours(x: Tensor, cap: Tensor, dim: int = 1, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    return dreluop.capped_relu(x, cap, dim=dim, bias=bias, residual=residual)


def ours_code(
    x: Tensor, cap: Tensor, dim: int = 1, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    return dreluop.capped_relu(x, cap, dim=dim, save="code", bias=bias, residual=residual)


def ours_triton(
    x: Tensor, cap: Tensor, dim: int = 1, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Its backward is Triton's too: it follows its forward."""
    with dreluop.use_backend("triton"):
        return ours(x, cap, dim, bias, residual)


def ours_(x: Tensor, cap: Tensor, dim: int = 1) -> Tensor:
    return dreluop.capped_relu(x, cap, dim=dim, inplace=True)


def ours_triton_(x: Tensor, cap: Tensor, dim: int = 1) -> Tensor:
    with dreluop.use_backend("triton"):
        return ours_(x, cap, dim)


def ours_code_(x: Tensor, cap: Tensor, dim: int = 1) -> Tensor:
    return dreluop.capped_relu(x, cap, dim=dim, inplace=True, save="code")


@dataclass(frozen=True)
class Contender:
    """One way to compute the activation.

    Attributes:
        name: how tables and result files call it.
        call: y as a new tensor.
        inplace: y written over x, or None where there is no such form.
        compiled: whether torch.compile is to be applied to ``call``.
    """

    name: str
    call: Activation
    inplace: Activation | None = None
    compiled: bool = False

    def ready(self) -> Activation:
        """The function to call; a compiled one is compiled anew, for the shape it sees first."""
        if not self.compiled:
            return self.call
        # Without the reset, the second shape would get a slower kernel for any size, and the ninth none at all.
        torch._dynamo.reset()
        # Compile workers that idle beside the measurement would be measured too.
        torch._inductor.config.compile_threads = 1
        return torch.compile(self.call, dynamic=False, fullgraph=True)


RELU_MINIMUM = Contender("relu(minimum)", relu_minimum, relu_minimum_)
CLAMP = Contender("clamp", clamp_tensor, clamp_tensor_)
COMPILED = Contender("torch.compile relu(minimum)", relu_minimum, compiled=True)
OURS = Contender("dreluop", ours, ours_)
OURS_CODE = Contender("dreluop, 2-bit code", ours_code, ours_code_)
OURS_TRITON = Contender("dreluop, Triton", ours_triton, ours_triton_)
EVERY = (RELU_MINIMUM, CLAMP, COMPILED, OURS, OURS_CODE, OURS_TRITON)
CONTENDERS = {contender.name: contender for contender in EVERY}

# The floors: what any implementation must at least do, a read of x and a write of y, without arithmetic.
CLONE = "clone"
COPY = "copy_"
