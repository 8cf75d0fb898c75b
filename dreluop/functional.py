"""The public functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function

from dreluop._internal import checks, dtensor
from dreluop._internal.caps_given import check_caps, check_devices, tensors_of
from dreluop._internal.overrides import has_override
from dreluop._internal.zeroed import NOTHING, zeroed
from dreluop.autograd import fast_path, route, surrogate
from dreluop.backends.selection import by_default_rule, operators_for

SaveMode = Literal["output", "mask"]
Above = Literal["cap", "zero"]
NaN = Literal["propagate", "zero"]


@overload
def capped_relu(
    x: Tensor,
    cap: Tensor | float,
    *,
    dim: int = 1,
    inplace: bool = False,
    save: SaveMode = "output",
    balancer: None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    above: Above = "cap",
    nan: NaN = "propagate",
) -> Tensor: ...
@overload
def capped_relu(
    x: Tensor,
    cap: Tensor | float,
    *,
    dim: int = 1,
    inplace: bool = False,
    save: SaveMode = "output",
    balancer: float,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    above: Above = "cap",
    nan: NaN = "propagate",
) -> tuple[Tensor, Tensor]: ...
def capped_relu(
    x: Tensor,
    cap: Tensor | float,
    *,
    dim: int = 1,
    inplace: bool = False,
    save: SaveMode = "output",
    balancer: float | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    above: Above = "cap",
    nan: NaN = "propagate",
) -> Tensor | tuple[Tensor, Tensor]:
    """``y = max(0, min(x, cap))``: D-ReLU with a cap that learns, S-ReLU with one that does not.

    Differentiable to any order in x and cap. Where ``0 < x < cap`` the gradient goes to x, where ``x >= cap > 0`` to
    the cap, elsewhere it is 0; NaN in x or cap gives NaN. Source: Sooksatra & Rivas, Mathematics 2024, section 4.

    Subnormal numbers are kept. On a CPU whose threads flush them (``torch.set_flush_denormal(True)``, called before the
    first operator starts the threads), they count as 0 as in ``torch.relu``; float16 has none there.

    Args:
        x: activations, any shape and strides; float32, float64, float16 or bfloat16.
        cap: the largest output, on x's device, of any of these dtypes (rounded to x's dtype before it is compared):
            shape ``()`` or ``(1,)`` for one cap, ``(x.shape[dim],)`` for one per channel, ``x.shape[1:]`` for one per
            neuron; or a number, rounded in the same way (so 1e300 caps no float32).
        dim: the channel dimension; read only for a channel cap.
        inplace: write y over x and return x.
        save: what is kept for backward: ``"output"`` keeps y, which the next layer mostly keeps anyway; ``"mask"``
            keeps 2 bits per element, for where nothing else keeps y.
        balancer: if given, ``(y, penalty)`` is returned with ``penalty = balancer * sum(cap ** 2)``, equation (1) of
            the paper, computed in the same pass and differentiated in the same backward (apart from it, by
            ``cap_penalty``, in place on a view and inside ``torch.func`` transforms).
        bias: added to x in the same pass: shape ``(x.shape[dim],)``, or the cap's with a neuron cap; any of the dtypes.
        residual: added after the bias, x's shape and dtype, any strides. The sum is taken in float32 (float64 for
            float64) and rounded once to x's dtype, where eager additions of half types round twice.
        above: what an element above its cap gives: ``"cap"``, or ``"zero"``, which drops a value out of range, as a bit
            flip makes it: y is x where ``0 < x <= cap``, else 0, and the gradient goes to x where y is positive, never
            to the cap (through the penalty only). The sum with bias and residual counts as x.
        nan: what NaN in x or cap gives: ``"propagate"`` gives NaN, ``"zero"`` 0 without a gradient.

    Numbers and flags may be of numpy, or 0-dimensional tensors without a gradient. A type with ``__torch_function__``
    gets the call, as with ``torch.nn.functional.prelu``.

    Returns:
        y with x's shape and dtype and the strides of ``torch.empty_like(x)``; with ``balancer`` also the penalty,
        0-dimensional, float32 (float64 for a float64 cap).

    Raises:
        TypeError: x, cap, bias or residual is no float tensor or of another layout than ``torch.strided``, residual has
            not x's dtype, dim is no int, inplace no bool, balancer no number.
        ValueError: the shape or device of cap, bias or residual does not fit x, dim is out of range, save, above or nan
            is unknown, above is "zero" inside ``surrogate_backward`` or ``smooth_forward``, balancer is negative or not
            finite, or x cannot be written in place.
        RuntimeError: the backend of ``use_backend`` cannot serve x.
    """
    eager = not torch.compiler.is_compiling() and not surrogate.active
    if eager and (by_node := fast_path.capped_relu) is not None and by_default_rule(x):
        by_fast_path: Tensor | tuple[Tensor, Tensor] | None = by_node(
            x, cap, dim, inplace, save, balancer, bias, residual, above, nan
        )
        if by_fast_path is not None:
            return by_fast_path
    if has_override((x, cap, bias, residual)):
        given = [one for one in (x, cap, bias, residual) if one is not None]
        # A handler that was written before these options gets the call as it knows it.
        form = {} if zeroed(above, nan) == NOTHING else {"above": above, "nan": nan}
        result: Tensor | tuple[Tensor, Tensor] = handle_torch_function(
            capped_relu, given, x, cap, dim=dim, inplace=inplace, save=save, balancer=balancer,
            bias=bias, residual=residual, **form,
        )  # fmt: skip
        return result
    plain = save == "output" and balancer is None and bias is None and residual is None
    if eager and plain and (y := fast_path.in_python(x, cap, dim, inplace, above, nan)) is not None:
        return y
    return route.check_and_run(x, cap, dim, inplace, save, balancer, bias, residual, above, nan)


def cap_penalty(caps: Tensor | Iterable[Tensor] | nn.Module, balancer: float) -> Tensor:
    """``balancer * sum over all caps of sum(m^2)``, equation (1) of the paper, in one operator call.

    Args:
        caps: a tensor, several tensors of any shapes and float dtypes on one device (also as a mapping's values, an
            ``nn.ParameterList`` or an ``nn.ParameterDict``), or another module, whose ``DReLU`` caps are taken (each
            once).
        balancer: weight of the penalty, finite and >= 0.

    Returns:
        0-dimensional tensor: float64 if any cap is, else float32. Its gradient to a cap is ``2 * balancer * m``. A
        DTensor where all caps are DTensors on one mesh (``.full_tensor()`` before it is added to an ordinary loss).

    Raises:
        TypeError: caps holds something that is no float tensor, or balancer is no number.
        ValueError: there is no cap, or they lie on several devices; balancer is negative or not finite.
    """
    # To ask a module for an attribute that it lacks is slow.
    if not isinstance(caps, nn.Module) and has_override((caps,)):
        result: Tensor = handle_torch_function(cap_penalty, (caps,), caps, balancer)
        return result
    tensors = tensors_of(caps)
    if has_override(tensors):
        result = handle_torch_function(cap_penalty, tensors, tensors, balancer)
        return result
    check_caps(tensors)
    balancer = checks.penalty_weight(balancer)
    check_devices(tensors)
    return route.penalty(tensors, balancer)


class Saturation(NamedTuple):
    """Where the elements of an activation lie.

    Attributes:
        off: per cap, the number of elements with x <= 0 or cap <= 0; int64, the cap's shape.
        inside: per cap, the number with 0 < x < cap, or with a NaN result: the gradient goes to x.
        capped: per cap, the number with x >= cap > 0: the gradient goes to the cap.
        has_gradient: per sample (dim 0), whether any element is inside; bool, shape ``(x.shape[0],)``. A sample
            without one has an input gradient of exactly zero through this layer.
    """

    off: Tensor
    inside: Tensor
    capped: Tensor
    has_gradient: Tensor


_from_fields = Saturation.__new__


def _from_fields_or_iterable(cls: type[Saturation], *fields: Any, **named: Any) -> Saturation:
    return cls._make(fields[0]) if len(fields) == 1 and not named else _from_fields(cls, *fields, **named)


# As torch's own named results are made: a subclass of Tensor converts what a function returns in this way.
Saturation.__new__ = _from_fields_or_iterable  # type: ignore[method-assign, assignment]


def saturation(x: Tensor, cap: Tensor | float, dim: int = 1) -> Saturation:
    """Count the elements off, inside and capped, per cap, and find the samples without a live unit. No gradient.

    Args:
        x: pre-activations, or outputs of the activation (both give the same counts, but for ``above="zero"``), with at
            least one dimension; the first is the sample.
        cap, dim: as in ``capped_relu``.

    Raises:
        TypeError, ValueError: as ``capped_relu``; ValueError also for a 0-dimensional x.
    """
    if has_override((x, cap)):
        result: Saturation = handle_torch_function(saturation, (x, cap), x, cap, dim=dim)
        return result
    checks.float_tensor("x", x)
    dim = checks.integer("dim", dim)
    cap = checks.cap_for(x, cap, dim)
    if x.ndim == 0:
        raise ValueError("x: got 0 dimensions; expected at least one, the sample")
    if dtensor.any_distributed(x, cap):
        cap = dtensor.checked_cap(x, cap)
    counts, has_gradient = operators_for(x).cap_saturation(x.detach(), cap.detach(), dim)
    return Saturation(counts[0], counts[1], counts[2], has_gradient)
