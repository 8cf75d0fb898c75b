"""The public functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.overrides import handle_torch_function, has_torch_function

from dreluop._internal import checks, dtensor, torch_private
from dreluop._internal.cap_state import LearnedCap
from dreluop._internal.errors import raise_as_of_torch
from dreluop.autograd import eager, fast_path, sharded, surrogate, traced
from dreluop.autograd.base import BelowAutograd, derivatives_by_plain_torch
from dreluop.autograd.function import PlainCappedReLUFunction
from dreluop.autograd.penalty import penalty_of
from dreluop.backends.selection import nothing_chosen, operators_for
from dreluop.ops.call import Call

_TENSORS = frozenset({Tensor, nn.Parameter})
_is_tracing = torch_private.is_tracing  # by torch.jit.trace
# Past torch's own apply, which binds default arguments for 50 us.
_apply_plain = super(torch.autograd.Function, PlainCappedReLUFunction).apply

SaveMode = Literal["output", "mask"]


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

    Numbers and flags may be of numpy, or 0-dimensional tensors without a gradient. A type with ``__torch_function__``
    gets the call, as with ``torch.nn.functional.prelu``.

    Returns:
        y with x's shape and dtype and the strides of ``torch.empty_like(x)``; with ``balancer`` also the penalty,
        0-dimensional, float32 (float64 for a float64 cap).

    Raises:
        TypeError: x, cap, bias or residual is no float tensor or of another layout than ``torch.strided``, residual has
            not x's dtype, dim is no int, inplace no bool, balancer no number.
        ValueError: the shape or device of cap, bias or residual does not fit x, dim is out of range, save is unknown,
            balancer is negative or not finite, or x cannot be written in place.
        RuntimeError: the backend of ``use_backend`` cannot serve x.
    """
    compiling = torch.compiler.is_compiling()
    fast = (
        not compiling
        and save == "output"
        and balancer is None
        and bias is None
        and residual is None
        and not surrogate.active
    )
    if fast and (by_node := fast_path.capped_relu) is not None and nothing_chosen():
        try:
            if (y := by_node(x, cap, dim, inplace)) is not None:
                return y
        except (RuntimeError, TypeError, ValueError) as error:
            _raise_in_our_words(error, x, cap, dim)
            raise
    if _overrides((x, cap, bias, residual)):
        given = [one for one in (x, cap, bias, residual) if one is not None]
        overridden: Tensor | tuple[Tensor, Tensor] = handle_torch_function(
            capped_relu, given, x, cap, dim=dim, inplace=inplace, save=save, balancer=balancer,
            bias=bias, residual=residual,
        )  # fmt: skip
        return overridden
    if (
        fast
        and type(x) in _TENSORS
        and isinstance(cap, Tensor)
        and type(cap) in _TENSORS
        and type(dim) is int
        and x.device == cap.device
        and type(inplace) is bool
        and not derivatives_by_plain_torch()
        and not _is_tracing()
    ):
        return _fast_in_python(x, cap, dim, inplace)
    if compiling:
        # Dynamo cannot leave its graph within a try, and would never look at this function again.
        return _run(_checked(x, cap, dim, inplace, save, balancer, bias, residual))
    try:
        if _is_tracing() and not surrogate.active:
            return _run_in_jit_trace(x, cap, dim, inplace, save, balancer, bias, residual)
        return _run(_checked(x, cap, dim, inplace, save, balancer, bias, residual))
    except RuntimeError as error:
        raise_as_of_torch(error)
        raise


def _fast_in_python(x: Tensor, cap: Tensor, dim: int, inplace: bool) -> Tensor:
    """The fast path without C++. Small tensors feel every microsecond, so the operator is asked at once.

    It refuses whatever the checks would, which then have the words for it.
    """
    try:
        operators = operators_for(x)
        if inplace:
            checks.writable_in_place(x, cap=cap)
        if torch.is_grad_enabled() and (x.requires_grad or cap.requires_grad):
            y: Tensor = _apply_plain(x, cap, dim, inplace)
            return y
        with BelowAutograd():
            return operators.activate(x, cap, dim, inplace, False, None)[0]
    except (RuntimeError, TypeError, ValueError) as error:
        _raise_in_our_words(error, x, cap, dim)
        raise


def _raise_in_our_words(error: Exception, x: Tensor, cap: Tensor | float, dim: int) -> None:
    raise_as_of_torch(error)
    checks.float_tensor("x", x)
    checks.cap_for(x, cap, checks.integer("dim", dim))


def _run(call: Call) -> Tensor | tuple[Tensor, Tensor]:
    """The road of a checked call."""
    compiling = torch.compiler.is_compiling()
    by_shards = call.save == "mask" and dtensor.is_distributed(call.x)
    if surrogate.active:
        run = surrogate.run_outside_graphs if compiling else surrogate.run
        replaced = run(call._replace(save="output") if by_shards else call)
        if replaced is not None:
            return replaced
    if by_shards:
        return sharded.run(call, _run)
    return traced.run(call) if compiling else eager.run(call)


def _run_in_jit_trace(*arguments: Any) -> Tensor | tuple[Tensor, Tensor]:
    traced.refuse_transforms_in_jit_trace()
    with traced.not_traced():
        call = _checked(*arguments)
        if call.inplace:
            checks.writable_in_place(call.x, cap=call.cap, bias=call.bias, residual=call.residual)
    return operators_for(call.x).values(call)


def _checked(
    x: Tensor,
    cap: Tensor | float,
    dim: int,
    inplace: bool,
    save: str,
    balancer: float | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> Call:
    """The call, or the error that names what is wrong with it."""
    checks.float_tensor("x", x)
    dim = checks.integer("dim", dim)
    cap = checks.cap_for(x, cap, dim)
    if save != "output":
        checks.save_mode(save)
    if inplace is not False:
        inplace = checks.flag("inplace", inplace)
    if balancer is not None:
        balancer = checks.penalty_weight(balancer)
    if bias is not None or residual is not None:
        bias, residual = checks.bias_and_residual_for(x, cap, dim, bias, residual)
    if dtensor.any_distributed(x, cap, bias, residual):
        cap = dtensor.checked_cap(x, cap, bias=bias, residual=residual)
        if inplace and save == "mask":
            dtensor.refuse_mask_in_place()
    return Call(x, cap, dim, inplace, save, balancer, bias, residual)


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
    if not isinstance(caps, nn.Module) and _overrides((caps,)):
        overridden: Tensor = handle_torch_function(cap_penalty, (caps,), caps, balancer)
        return overridden
    tensors = _tensors_of(caps)
    if _overrides(tensors):
        overridden = handle_torch_function(cap_penalty, tensors, tensors, balancer)
        return overridden
    _check_caps(tensors)
    balancer = checks.penalty_weight(balancer)
    for index, cap in enumerate(tensors[1:], 1):
        if cap.device != tensors[0].device:
            raise ValueError(
                f"caps[{index}]: got a tensor on {cap.device}; expected the device of caps[0], {tensors[0].device}"
            )
    if dtensor.any_distributed(*tensors):
        groups = dtensor.by_mesh(tensors)
        if len(groups) > 1:
            return torch.stack([dtensor.full_tensor(_penalty(group, balancer)) for group in groups]).sum()
    return _penalty(tensors, balancer)


def _overrides(arguments: Sequence[Any]) -> bool:
    """Whether a type among these, or a mode, has its own ``__torch_function__`` to be called.

    A lazy parameter's only refuses. In what Dynamo traces only types that are no tensors: it calls the operators with
    a tensor of another type, and cannot trace how torch calls such a type for a function of ours.
    """
    if not has_torch_function(arguments):
        return False
    if torch.compiler.is_compiling():
        return any(not isinstance(one, Tensor) and hasattr(type(one), "__torch_function__") for one in arguments)
    return not any(type(argument) is UninitializedParameter for argument in arguments)


def _penalty(caps: list[Tensor], balancer: float) -> Tensor:
    calls = operators_for(caps[0])
    if torch.compiler.is_compiling():
        return traced.penalty(calls, caps, balancer)
    if _is_tracing():
        return calls.cap_penalty(caps, balancer)
    return penalty_of(caps, balancer)


def caps_of(caps: Tensor | Iterable[Tensor] | nn.Module) -> list[Tensor]:
    """The caps that a tensor, several, or the DReLUs of a module are; those of a module each once.

    Raises:
        TypeError: caps holds something that is no float tensor.
        ValueError: there is none, or one is that of a LazyDReLU without a shape yet.
    """
    tensors = _tensors_of(caps)
    _check_caps(tensors)
    return tensors


def _check_caps(tensors: list[Tensor]) -> None:
    for index, cap in enumerate(tensors):
        if isinstance(cap, UninitializedParameter):
            raise ValueError(f"caps[{index}]: got the cap of a LazyDReLU without a shape; run the module once before")
        checks.float_tensor(f"caps[{index}]", cap)


def _tensors_of(caps: Tensor | Iterable[Tensor] | nn.Module) -> list[Tensor]:
    if isinstance(caps, Tensor):
        return [caps]
    if isinstance(caps, nn.Module) and not isinstance(caps, nn.ParameterList | nn.ParameterDict):
        found = [m.cap for m in caps.modules() if isinstance(m, LearnedCap)]
        if not found:
            raise ValueError(f"caps: got a {type(caps).__name__} without any DReLU; expected at least one")
        return list({id(cap): cap for cap in found}.values())
    if not isinstance(caps, Iterable):
        raise TypeError(f"caps: got {type(caps).__name__}; expected a tensor, tensors or a module")
    tensors = list(caps.values() if isinstance(caps, Mapping | nn.ParameterDict) else caps)
    if not tensors:
        raise ValueError("caps: got no tensor; expected at least one")
    return tensors


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
        x: pre-activations, or outputs of the activation (both give the same counts), with at least one dimension; the
            first is the sample.
        cap, dim: as in ``capped_relu``.

    Raises:
        TypeError, ValueError: as ``capped_relu``; ValueError also for a 0-dimensional x.
    """
    if _overrides((x, cap)):
        overridden: Saturation = handle_torch_function(saturation, (x, cap), x, cap, dim=dim)
        return overridden
    checks.float_tensor("x", x)
    dim = checks.integer("dim", dim)
    cap = checks.cap_for(x, cap, dim)
    if x.ndim == 0:
        raise ValueError("x: got 0 dimensions; expected at least one, the sample")
    if dtensor.any_distributed(x, cap):
        cap = dtensor.checked_cap(x, cap)
    counts, has_gradient = operators_for(x).cap_saturation(x.detach(), cap.detach(), dim)
    return Saturation(counts[0], counts[1], counts[2], has_gradient)
