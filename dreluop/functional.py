"""The public functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.overrides import handle_torch_function, has_torch_function

from dreluop._internal import checks, dtensor, torch_private
from dreluop._internal.cap_state import LearnedCap
from dreluop._internal.errors import raise_as_of_torch
from dreluop.autograd import fast_path, surrogate
from dreluop.autograd.base import BelowAutograd, derivative_may_be_asked, derivatives_by_plain_torch
from dreluop.autograd.function import CappedReLUFunction, PlainCappedReLUFunction, SavedMask
from dreluop.autograd.penalty import penalty_of
from dreluop.backends import compile_policy
from dreluop.backends.selection import nothing_chosen, operators_for
from dreluop.ops.composite import accumulation_dtype, sum_dtype
from dreluop.ops.handles import FUSED, Operators

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
    traced = torch.compiler.is_compiling()
    usual = (
        not traced
        and save == "output"
        and balancer is None
        and bias is None
        and residual is None
        and not surrogate.active
    )
    if usual and (by_node := fast_path.capped_relu) is not None and nothing_chosen():
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
        usual
        and type(x) in _TENSORS
        and isinstance(cap, Tensor)
        and type(cap) in _TENSORS
        and type(dim) is int
        and x.device == cap.device
        and type(inplace) is bool
        and not derivatives_by_plain_torch()
        and not _is_tracing()
    ):
        return _plain(x, cap, dim, inplace)
    if traced:
        # Dynamo cannot leave its graph within a try, and would never look at this function again.
        return _any_call(x, cap, dim, inplace, save, balancer, bias, residual)
    call = _in_a_trace if _is_tracing() and not surrogate.active else _any_call
    try:
        return call(x, cap, dim, inplace, save, balancer, bias, residual)
    except RuntimeError as error:
        raise_as_of_torch(error)
        raise


def _plain(x: Tensor, cap: Tensor, dim: int, inplace: bool) -> Tensor:
    """The usual call. Small tensors feel every microsecond, so the operator is asked at once.

    It refuses whatever the checks would, which then have the words for it.
    """
    try:
        calls = operators_for(x)
        if inplace:
            checks.writable_in_place(x, cap=cap)
        if torch.is_grad_enabled() and (x.requires_grad or cap.requires_grad):
            y: Tensor = _apply_plain(x, cap, dim, inplace)
            return y
        with BelowAutograd():
            if not inplace:
                return calls.capped_relu(x, cap, dim)
            calls.capped_relu_(x, cap, dim)
        return x
    except (RuntimeError, TypeError, ValueError) as error:
        _raise_in_our_words(error, x, cap, dim)
        raise


def _raise_in_our_words(error: Exception, x: Tensor, cap: Tensor | float, dim: int) -> None:
    raise_as_of_torch(error)
    checks.float_tensor("x", x)
    checks.cap_for(x, cap, checks.integer("dim", dim))


def _any_call(
    x: Tensor,
    cap: Tensor | float,
    dim: int,
    inplace: bool,
    save: str,
    balancer: float | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor | tuple[Tensor, Tensor]:
    cap, dim, inplace, balancer, bias_and_residual = _checked(x, cap, dim, inplace, save, balancer, bias, residual)
    sharded = dtensor.is_distributed(x)
    if surrogate.active:
        run = surrogate.capped_outside_graphs if torch.compiler.is_compiling() else surrogate.capped
        save_there = "output" if sharded else save
        if (replaced := run(x, cap, dim, inplace, save_there, balancer, bias_and_residual)) is not None:
            return replaced
    if sharded and save == "mask":
        return _sharded_with_mask(x, cap, dim, balancer, bias, residual)
    if torch.compiler.is_compiling():
        return _traced(x, cap, dim, inplace, save, balancer, bias_and_residual)
    calls = operators_for(x)
    if inplace:
        checks.writable_in_place(x, cap=cap, bias=bias, residual=residual)
    if not derivative_may_be_asked(x, cap, *bias_and_residual):
        with BelowAutograd():
            return _without_derivative(calls, x, cap, dim, inplace, balancer, bias_and_residual)
    # autograd refuses a second result of a function that writes over a view.
    split = inplace and x._is_view()
    fused = None if split else balancer
    saved_mask = SavedMask() if inplace and save == "mask" else save
    result = CappedReLUFunction.apply(x, cap, dim, inplace, saved_mask, fused, *bias_and_residual)
    outputs: tuple[Tensor, ...] = result if isinstance(result, tuple) else (result,)
    if balancer is None:
        return outputs[0]
    return outputs[0], penalty_of([cap], balancer) if fused is None else outputs[-1]


def _in_a_trace(
    x: Tensor,
    cap: Tensor | float,
    dim: int,
    inplace: bool,
    save: str,
    balancer: float | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor | tuple[Tensor, Tensor]:
    """For ``torch.jit.trace``: operators, which have the same derivatives. It could not save a Function."""
    if torch_private.transforms_active():
        # It fails at the shape of a tensor there.
        raise RuntimeError(
            "capped_relu: not in torch.jit.trace of torch.vmap or another torch.func transform; use torch.compile, or "
            "trace a function without the transform"
        )
    with _checks_not_traced():
        cap, dim, inplace, balancer, bias_and_residual = _checked(x, cap, dim, inplace, save, balancer, bias, residual)
        if inplace:
            checks.writable_in_place(x, cap=cap, bias=bias, residual=residual)
    return _without_derivative(operators_for(x), x, cap, dim, inplace, balancer, bias_and_residual)


@contextmanager
def _checks_not_traced() -> Iterator[None]:
    """In a trace every size is a tensor, and torch warns of each comparison."""
    state = torch_private.get_tracing_state()
    torch_private.set_tracing_state(None)
    try:
        yield
    finally:
        torch_private.set_tracing_state(state)


def _checked(
    x: Tensor,
    cap: Tensor | float,
    dim: int,
    inplace: bool,
    save: str,
    balancer: float | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, int, bool, float | None, tuple[Tensor | None, ...]]:
    """cap, dim, inplace, balancer, and bias and residual where there are any, or the error that names what is wrong."""
    checks.float_tensor("x", x)
    dim = checks.integer("dim", dim)
    cap = checks.cap_for(x, cap, dim)
    if save != "output":
        checks.save_mode(save)
    if inplace is not False:
        inplace = checks.flag("inplace", inplace)
    if balancer is not None:
        balancer = checks.penalty_weight(balancer)
    bias_and_residual: tuple[Tensor | None, ...] = ()
    if bias is not None or residual is not None:
        bias_and_residual = checks.bias_and_residual_for(x, cap, dim, bias, residual)
    if dtensor.any_distributed(x, cap, bias, residual):
        cap = dtensor.checked_cap(x, cap, bias=bias, residual=residual)
        if inplace and save == "mask":
            dtensor.refuse_mask_in_place()
    return cap, dim, inplace, balancer, bias_and_residual


def _sharded_with_mask(
    x: Tensor, cap: Tensor, dim: int, balancer: float | None, bias: Tensor | None, residual: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    def with_mask(x: Tensor, cap: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        return capped_relu(x, cap, dim=dim, save="mask", bias=bias, residual=residual)

    assert dtensor.on_local_tensors is not None  # as the rules are registered
    y = dtensor.on_local_tensors(with_mask, x, cap, dim, bias, residual)
    return y if balancer is None else (y, penalty_of([cap], balancer))


def _without_derivative(
    calls: Operators,
    x: Tensor,
    cap: Tensor,
    dim: int,
    inplace: bool,
    balancer: float | None,
    bias_and_residual: tuple[Tensor | None, ...],
) -> Tensor | tuple[Tensor, Tensor]:
    if balancer is None:
        if not inplace:
            return calls.capped_relu(x, cap, dim, *bias_and_residual)
        calls.capped_relu_(x, cap, dim, *bias_and_residual)
        return x
    if inplace:
        return x, calls.capped_relu_with_aux_(x, cap, dim, False, balancer, *bias_and_residual)[1]
    y, _, penalty = calls.capped_relu_with_aux(x, cap, dim, False, balancer, *bias_and_residual)
    return y, penalty


def _traced(
    x: Tensor,
    cap: Tensor,
    dim: int,
    inplace: bool,
    save: str,
    balancer: float | None,
    bias_and_residual: tuple[Tensor | None, ...],
) -> Tensor | tuple[Tensor, Tensor]:
    # Dynamo refuses an autograd.Function with a jvp; the operators carry the same derivatives.
    calls = FUSED if compile_policy.fuses(x, cap, save) else operators_for(x)
    if save == "mask":
        if inplace:
            y = x
            calls.capped_relu_with_aux_(x, cap, dim, True, None, *bias_and_residual)
        else:
            y = calls.capped_relu_with_aux(x, cap, dim, True, None, *bias_and_residual)[0]
    elif inplace:
        y = x
        calls.capped_relu_(x, cap, dim, *bias_and_residual)
    else:
        y = calls.capped_relu(x, cap, dim, *bias_and_residual)
    return y if balancer is None else (y, _traced_penalty(calls, [cap], balancer))


def _traced_penalty(calls: Operators, caps: list[Tensor], balancer: float) -> Tensor:
    """By an operator whose number is always 1: it is a constant there, and each would be compiled anew.

    In the dtype of sums, so that nothing overflows before the balancer makes it small.
    """
    wide = [cap.to(sum_dtype(cap.device)) for cap in caps]
    return (calls.cap_penalty(wide, 1.0) * balancer).to(accumulation_dtype(*caps))


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
        return _traced_penalty(calls, caps, balancer)
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
