"""What a user could write instead of ``dreluop.capped_relu``, and the copies that bound how fast any of it can be.

Tests take their clamp references from here too, so that what is timed is what is tested. Every function takes x (any
shape, a float dtype), a cap (layer, channel or neuron: see ``dreluop._internal.shapes``) and the channel dimension, and
returns y with x's shape and dtype; some also take a bias and a residual to be added first.

They agree inside and outside the caps and differ at ties, for caps below zero and in rounding. The gradient of y goes:

==================  =======================  ====================  ====================================================
implementation           at x == cap              at x == 0             else
==================  =======================  ====================  ====================================================
dreluop             to the cap               nowhere
relu(minimum)       half to x, half to cap   nowhere
clamp               to x                     to x                  a cap below 0 gives the cap
torch.where         to the cap               nowhere               x > 0: a cap below 0 gives the cap, one of NaN x
PACT                half to x, half to cap   half to x             rounds, infinity gives NaN, a cap below 0 is wrong
Brevitas clip       to x                     to x                  a cap of NaN gives x
hardtanh            nowhere                  nowhere               one cap that is a number and cannot learn
relu6               nowhere                  nowhere               the same, 6
==================  =======================  ====================  ====================================================
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dreluop
from dreluop._internal.shapes import bias_view, broadcast_shape
from dreluop.backends.selection import BackendName

Activation = Callable[..., Tensor]
FIXED_CAP = 1.0  # of hardtanh: in the middle of the caps of ``suite.make_data``


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


def ours_mask(
    x: Tensor, cap: Tensor, dim: int = 1, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    return dreluop.capped_relu(x, cap, dim=dim, save="mask", bias=bias, residual=residual)


def ours_(x: Tensor, cap: Tensor, dim: int = 1) -> Tensor:
    return dreluop.capped_relu(x, cap, dim=dim, inplace=True)


def ours_mask_(x: Tensor, cap: Tensor, dim: int = 1) -> Tensor:
    return dreluop.capped_relu(x, cap, dim=dim, inplace=True, save="mask")


def _by(backend: BackendName, call: Activation) -> Activation:
    """The same by another backend; its backward too, which follows its forward."""

    def run(*arguments: Any, **more: Any) -> Tensor:
        with dreluop.use_backend(backend):
            return call(*arguments, **more)

    return run


def where_form(
    x: Tensor, cap: Tensor, dim: int = 1, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """The definition by cases, NaN of x included."""
    x = added(x, dim, bias, residual)
    m = cap_view(x, cap, dim)
    return torch.where(x <= 0, 0, torch.where(x >= m, m, x))


def pact(x: Tensor, cap: Tensor, dim: int = 1, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """``0.5 (|x| - |x - cap| + cap)``, equation (1) of PACT (Choi et al., 2018, arXiv:1805.06085)."""
    x = added(x, dim, bias, residual)
    m = cap_view(x, cap, dim)
    return 0.5 * (x.abs() - (x - m).abs() + m)


def brevitas_clip(x: Tensor, cap: Tensor, dim: int = 1) -> Tensor:
    """``brevitas.function.ops.tensor_clamp``, a TorchScript function: what clips in Brevitas's learned quantizers."""
    from brevitas.function.ops import tensor_clamp  # type: ignore[import-not-found] # noqa: PLC0415 (optional)

    m = cap_view(x, cap, dim)
    clipped: Tensor = tensor_clamp(x, torch.zeros_like(m), m)
    return clipped


def hardtanh(x: Tensor, cap: Tensor, dim: int = 1) -> Tensor:
    """``F.hardtanh(x, 0, 1)``: the cap is not read."""
    return nn.functional.hardtanh(x, 0.0, FIXED_CAP)


def hardtanh_(x: Tensor, cap: Tensor, dim: int = 1) -> Tensor:
    return nn.functional.hardtanh(x, 0.0, FIXED_CAP, inplace=True)


def relu6(x: Tensor, cap: Tensor, dim: int = 1) -> Tensor:
    """``F.relu6(x)``: the cap is not read."""
    return nn.functional.relu6(x)


def relu6_(x: Tensor, cap: Tensor, dim: int = 1) -> Tensor:
    return nn.functional.relu6(x, inplace=True)


@dataclass(frozen=True)
class Implementation:
    """One way to compute the activation.

    Attributes:
        name: how tables and result files call it.
        call: y as a new tensor.
        inplace: y written over x, or None where there is no such form.
        compiled: whether torch.compile is to be applied to ``call``.
        exact: whether its values are those of the definition bit for bit, up to the sign of zero.
        fixed_cap: the cap of one that cannot learn: it does not read its cap, which so gets no gradient.
        bias_and_residual: whether it takes a bias and a residual.
        package: what must be installed for it.
    """

    name: str
    call: Activation
    inplace: Activation | None = None
    compiled: bool = False
    exact: bool = True
    fixed_cap: float | None = None
    bias_and_residual: bool = True
    package: str | None = None

    @property
    def is_installed(self) -> bool:
        return self.package is None or importlib.util.find_spec(self.package) is not None

    def ready(self) -> Activation:
        """The function to call; a compiled one is compiled for the shape it sees first after ``forget_compiled``."""
        if not self.compiled:
            return self.call
        # Compile workers that idle beside the measurement would be measured too.
        torch._inductor.config.compile_threads = 1
        return torch.compile(self.call, dynamic=False, fullgraph=True)

    def inputs(self, x: Tensor, cap: Tensor) -> tuple[Tensor, ...]:
        """Those that get a gradient."""
        return (x, cap) if self.fixed_cap is None else (x,)

    def check(self, y: Tensor, x: Tensor, cap: Tensor, dim: int = 1) -> None:
        """Compare a result with the definition, for caps above zero.

        Raises:
            ValueError: y is wrong.
        """
        with torch.no_grad():
            m = cap if self.fixed_cap is None else torch.full_like(cap, self.fixed_cap)
            expected = relu_minimum(x.detach(), m, dim)
            if self.exact:
                right = torch.equal(y.detach(), expected)
            else:
                # PACT rounds three times, at most at the size of |x| + cap.
                slack = 4 * torch.finfo(x.dtype).eps * float(x.abs().max() + m.max())
                right = torch.allclose(y.detach(), expected, rtol=0, atol=slack)
            if not right:
                raise ValueError("wrong values: not timed")


def forget_compiled(names: Iterable[str]) -> None:
    """To be called before each case, with its implementations: else the ninth shape would not be compiled at all."""
    if any(IMPLEMENTATIONS[name].compiled for name in names):
        torch._dynamo.reset()


def _compiled(implementation: Implementation) -> Implementation:
    return Implementation(
        f"torch.compile {implementation.name}", implementation.call, compiled=True, exact=implementation.exact
    )


RELU_MINIMUM = Implementation("relu(minimum)", relu_minimum, relu_minimum_)
CLAMP = Implementation("clamp", clamp_tensor, clamp_tensor_)
WHERE = Implementation("torch.where", where_form)
PACT = Implementation("PACT formula", pact, exact=False)
COMPILED, COMPILED_CLAMP, COMPILED_WHERE, COMPILED_PACT = map(_compiled, (RELU_MINIMUM, CLAMP, WHERE, PACT))
BREVITAS = Implementation("Brevitas clip", brevitas_clip, bias_and_residual=False, package="brevitas")
HARDTANH = Implementation("hardtanh, cap fixed", hardtanh, hardtanh_, fixed_cap=FIXED_CAP, bias_and_residual=False)
RELU6 = Implementation("relu6, cap fixed", relu6, relu6_, fixed_cap=6.0, bias_and_residual=False)
OURS = Implementation("dreluop", ours, ours_)
OURS_MASK = Implementation("dreluop, packed mask", ours_mask, ours_mask_)
OURS_TRITON = Implementation("dreluop, Triton", _by("triton", ours), _by("triton", ours_))
REFERENCE = Implementation("dreluop, reference", _by("reference", ours), _by("reference", ours_))
EVERY = (
    *(RELU_MINIMUM, CLAMP, WHERE, PACT, COMPILED, COMPILED_CLAMP, COMPILED_WHERE, COMPILED_PACT, BREVITAS),
    *(HARDTANH, RELU6, OURS, OURS_MASK, OURS_TRITON, REFERENCE),
)
IMPLEMENTATIONS = {implementation.name: implementation for implementation in EVERY}


def installed(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those whose package is there."""
    return tuple(name for name in names if IMPLEMENTATIONS[name].is_installed)


def versions() -> dict[str, str]:
    """The versions of the optional packages that implementations come from, where they are installed."""
    packages = {
        implementation.package for implementation in EVERY if implementation.package and implementation.is_installed
    }
    return {package: importlib.metadata.version(package) for package in sorted(packages)}


# The floors: what any implementation must at least do, a read of x and a write of y, without arithmetic.
CLONE = "clone"
COPY = "copy_"
# The same by an elementwise kernel: copy_ is the driver's copy, which is not always the faster.
COPY_BY_KERNEL = "copy by a kernel"
COPIES = (COPY, COPY_BY_KERNEL)
FLOORS = (CLONE, *COPIES)
