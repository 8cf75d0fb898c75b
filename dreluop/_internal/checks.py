"""Argument checks of the public functions: every message names the argument, what came and what was expected."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from itertools import accumulate
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from dreluop._internal import torch_private
from dreluop._internal.shapes import check_bias, granularity_of, same_shape

FLOAT_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
SAVE_MODES = ("output", "mask")
_DTYPE_NAMES = "float32, float64, float16 or bfloat16"


def float_tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}; expected a torch.Tensor")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: got dtype {value.dtype}; expected {_DTYPE_NAMES}")
    if value.is_nested:
        raise TypeError(f"{name}: got a nested tensor; expected one of a single shape, such as its values()")
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: got layout {value.layout}; expected torch.strided")
    return value


def float_dtype(name: str, value: Any) -> None:
    """Nothing for one of the float types, or None."""
    if value is None or (isinstance(value, torch.dtype) and value in FLOAT_DTYPES):
        return
    got = f"dtype {value}" if isinstance(value, torch.dtype) else type(value).__name__
    raise TypeError(f"{name}: got {got}; expected {_DTYPE_NAMES}")


def has_values(t: Tensor) -> bool:
    """Whether there are numbers in t to be read."""
    return not place_without_values(t)


def place_without_values(t: Tensor) -> str:
    """Where t has no numbers to be read, in words; empty where it has them."""
    if t.is_meta:
        return "on the meta device"
    return "in a fake tensor" if torch_private.is_fake(t) else ""


def cap_for(x: Tensor, cap: Any, dim: int) -> Tensor:
    """The cap as a tensor that fits x: a number becomes a layer cap of x's dtype, rounded as a tensor would be."""
    if not isinstance(cap, Tensor):
        cap = _layer_cap(x, cap_number(cap))
    result = float_tensor("cap", cap)
    if cap.device != x.device:
        raise ValueError(f"cap: got a tensor on {cap.device}; expected x's device, {x.device}")
    granularity_of(x.shape, cap.shape, dim)
    return result


def bias_for(x: Tensor, cap: Tensor, bias: Any, dim: int) -> Tensor:
    float_tensor("bias", bias)
    if bias.device != x.device:
        raise ValueError(f"bias: got a tensor on {bias.device}; expected x's device, {x.device}")
    check_bias(x.shape, cap.shape, bias.shape, dim)
    result: Tensor = bias
    return result


def residual_for(x: Tensor, residual: Any) -> Tensor:
    float_tensor("residual", residual)
    if residual.device != x.device:
        raise ValueError(f"residual: got a tensor on {residual.device}; expected x's device, {x.device}")
    if not same_shape(residual.shape, x.shape):
        raise ValueError(f"residual: got shape {tuple(residual.shape)}; expected x's, {tuple(x.shape)}")
    if residual.dtype != x.dtype:
        raise TypeError(f"residual: got dtype {residual.dtype}; expected x's, {x.dtype}")
    result: Tensor = residual
    return result


def save_mode(save: Any) -> str:
    if save not in SAVE_MODES:
        raise ValueError(f'save: got {save!r}; expected "output" or "mask"')
    return str(save)


def penalty_weight(balancer: Any) -> float:
    return at_least_zero("balancer", balancer)


def at_least_zero(name: str, value: Any) -> float:
    result = number(name, value)
    # For a number that torch.compile does not know, math.isfinite or a comparison with infinity has no meaning, and
    # sys.float_info.max would be another such number.
    if not 0 <= result <= 1.7976931348623157e308:
        raise ValueError(f"{name}: got {value}; expected a finite number >= 0")
    return result


def initial_cap(init: Any, dtype: torch.dtype | None = None) -> float:
    """A cap to start from; with the dtype that will hold it also checked against its range."""
    value = number("init", init)
    if not value > 0:
        raise ValueError(
            f"init: got {init}; expected a finite number > 0, or inf for plain ReLU (a cap <= 0 never learns)"
        )
    return value if dtype is None else stored("init", value, dtype)


def _layer_cap(x: Tensor, number: float) -> Tensor:
    if torch.compiler.is_compiling():
        # torch.full takes the number as a constant, so torch.compile would compile anew for each.
        return torch.ones((), dtype=x.dtype, device=x.device) * number
    return torch.full((), rounded(number, x.dtype), dtype=x.dtype, device=x.device)


def cap_number(cap: Any) -> float:
    if type(cap) is not float and not is_number(cap):
        raise TypeError(f"cap: got {type(cap).__name__}; expected a torch.Tensor or a number")
    return number("cap", cap)


def stored(name: str, value: float, dtype: torch.dtype) -> float:
    """The number for a parameter or buffer of the dtype, which must not make it 0 or infinite."""
    kept = rounded(value, dtype)
    if kept != value and (kept == 0 or math.isinf(kept)):
        raise ValueError(f"{name}: got {value:g}, which {dtype} rounds to {kept:g}; expected a number in its range")
    return kept


def rounded(value: float, dtype: torch.dtype) -> float:
    """0, infinite or the largest number of the dtype where a cast to it gives that; any other number as it is.

    In Python, because a tensor cannot be read under ``torch.device("meta")`` or if it is fake.
    """
    zero, largest, infinite = _LIMITS.get(dtype) or _limits(dtype)
    size = abs(value)
    if size <= zero:
        return math.copysign(0.0, value)
    if not size > largest:
        return value
    return math.copysign(math.inf if size >= infinite else largest, value)


def _limits(dtype: torch.dtype) -> tuple[float, float, float]:
    """The largest number rounded to 0, the largest number there is, and the smallest rounded to infinity."""
    limits = torch.finfo(dtype)
    # Halfway between the largest number and the next one that more bits of exponent would hold.
    infinite = limits.max / (2 - limits.eps) * (2 - limits.eps / 2)
    return limits.smallest_normal * limits.eps / 2, limits.max, infinite


_LIMITS = {dtype: _limits(dtype) for dtype in FLOAT_DTYPES}


def number(name: str, value: Any) -> float:
    """A number as a float: of Python, of numpy, or a 0-dimensional tensor."""
    if type(value) is float:
        return value
    plain = _scalar(value)
    if not isinstance(plain, Real) or isinstance(plain, bool):
        raise TypeError(f"{name}: got {_kind(value)}; expected a number")
    try:
        return float(plain)
    except OverflowError:
        raise ValueError(f"{name}: got {_too_long(plain)}; expected a number in the range of a float") from None


def is_number(value: Any) -> bool:
    plain = _scalar(value)
    return isinstance(plain, Real) and not isinstance(plain, bool)


def integer(name: str, value: Any) -> int:
    """An integer as an int: of Python, of numpy, a 0-dimensional tensor, or anything with ``__index__``."""
    if type(value) is int and -_INT64 <= value < _INT64:
        return value
    if not _is_integer(value):
        raise TypeError(f"{name}: got {_kind(value)}; expected an int")
    result = operator.index(_scalar(value))
    if not -_INT64 <= result < _INT64:
        raise ValueError(f"{name}: got {_too_long(result)}; expected one of 63 bits and a sign")
    return result


def positive_int(name: str, value: Any) -> int:
    result = integer(name, value)
    if result < 1:
        raise ValueError(f"{name}: got {result}; expected at least 1")
    return result


def shape(name: str, value: Any) -> tuple[int, ...]:
    """A positive int, or a sequence or one-dimensional array of them."""
    if isinstance(value, str | bytes | bytearray):
        raise TypeError(f"{name}: got {type(value).__name__} {value!r}; expected an int or a shape")
    if not isinstance(value, Sequence) and getattr(value, "ndim", 0) != 1:
        if not _is_integer(value):
            raise TypeError(f"{name}: got {_kind(value)}; expected an int or a shape")
        value = (value,)
    elif not all(map(_is_integer, value)):
        raise ValueError(f"{name}: got {value}; expected a positive int or a shape of positive ints")
    sizes = tuple(integer(name, size) for size in value)
    if not sizes or min(sizes) < 1:
        given = sizes[0] if len(sizes) == 1 else sizes
        raise ValueError(f"{name}: got {given}; expected a positive int or a shape of positive ints")
    return sizes


def flag(name: str, value: Any) -> bool:
    """A bool: of Python, of numpy, or a 0-dimensional tensor."""
    plain = _scalar(value)
    if not isinstance(plain, bool):
        raise TypeError(f"{name}: got {_kind(value)}; expected a bool")
    return plain


_INT64 = 1 << 63


def _scalar(value: Any) -> Any:
    """What torch's functions take for a number: the one in a 0-dimensional array, or tensor without a gradient."""
    if type(value) in (int, float, bool) or getattr(value, "ndim", None) != 0:
        return value
    unreadable = isinstance(value, Tensor) and (value.requires_grad or value.is_meta)
    return value if unreadable else value.item()


def _is_integer(value: Any) -> bool:
    plain = _scalar(value)
    if type(plain) is int:
        return True
    # A tensor that is left would be read all the same.
    if isinstance(plain, bool | Tensor):
        return False
    try:
        operator.index(plain)
    except TypeError:
        return False
    return True


def _too_long(value: Any) -> str:
    """Python refuses to write an int of more than 4,300 digits."""
    return f"an int of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"


def _kind(value: Any) -> str:
    """What a message calls a value of the wrong type."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.requires_grad:
        return f"{type(value).__name__} that requires grad"
    return f"{type(value).__name__} of shape {tuple(value.shape)} and {value.dtype} on {value.device}"


def writable_in_place(x: Tensor, **others: Tensor | None) -> None:
    """Raise where autograd or an argument forbids writing over x; the operators refuse an x that overlaps itself."""
    given = {name: other for name, other in others.items() if other is not None}
    if x.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            "inplace: x was made in inference mode and may be written over only there; use inplace=False or x.clone()"
        )
    if x.requires_grad and torch.is_grad_enabled():
        if x.is_leaf:
            raise ValueError(
                "inplace: x is a leaf tensor that requires grad, and autograd cannot record a write over it; "
                "use inplace=False"
            )
        if x._is_view() and x._base is not None and x._base.is_leaf:
            raise ValueError(
                "inplace: x is a view of a leaf tensor that requires grad, and autograd cannot record a write over it; "
                "use inplace=False"
            )
    if torch.is_grad_enabled() and torch_private.any_requires_grad(x, *given.values()) and x._is_view():
        made = torch_private.creation_meta(x)
        if made != torch_private.DEFAULT_CREATION:
            raise ValueError(
                "inplace: x is a view that autograd does not let be written over, made "
                f"{_VIEWS.get(made.name, made.name)}; use inplace=False"
            )
    for name, other in given.items():
        if other.is_inference() and torch.is_grad_enabled() and torch_private.any_requires_grad(x, *given.values()):
            raise ValueError(
                f"inplace: {name} was made in inference mode and cannot be saved for backward; pass a copy of the "
                f"{name}"
            )
        if not torch_private.transforms_active() and _share_memory(x, other):
            raise ValueError(
                f"inplace: {name} lies in the memory of x, which would be overwritten; pass a copy of the {name}"
            )


# By the names of torch's CreationMeta.
_VIEWS = {
    "IN_CUSTOM_FUNCTION": "by an autograd.Function, such as the one that full backward hooks put before a module "
    "(register_full_backward_hook and _pre_hook; opacus has them)",
    "MULTI_OUTPUT_NODE": "by chunk, split or unbind",
    "NO_GRAD_MODE": "without gradients",
    "INFERENCE_MODE": "in inference mode",
}


def _share_memory(x: Tensor, other: Tensor) -> bool:
    """Whether an element of one lies in the memory of an element of the other.

    Addresses are compared, and not storages, because two storages may have one memory (an array's).
    """
    # Subclasses (fake tensors, wrappers) may have no address.
    if any(type(t) not in (Tensor, torch.nn.Parameter) or t.is_meta or t.numel() == 0 for t in (x, other)):
        return False
    # From an element of x to one of other: the distance of the last of x from the first of other, and steps forward.
    distance = other.data_ptr() - x.data_ptr()
    low, high = 1 - other.element_size(), x.element_size() - 1
    span_of_x, span_of_other = _span(x), _span(other)
    if distance - span_of_x > high or distance + span_of_other < low:
        return False
    times: dict[int, int] = {}
    for t in (x, other):
        for stride, size in zip(t.stride(), t.shape, strict=True):
            step = stride * t.element_size()
            if step > 0 and size > 1:
                times[step] = times.get(step, 0) + size - 1
    return _reaches(distance - span_of_x, sorted(times.items()), low, high)


def _span(t: Tensor) -> int:
    """From the address of the first element of t to that of the last."""
    if t.is_contiguous():
        return (t.numel() - 1) * t.element_size()
    return t.element_size() * sum(stride * (size - 1) for stride, size in zip(t.stride(), t.shape, strict=True))


def _reaches(start: int, steps: list[tuple[int, int]], low: int, high: int) -> bool:
    """Whether start, plus each step taken 0 to so many times, can lie in low..high; True where that takes too long."""
    merged: list[tuple[int, int]] = []
    for step, times in steps:
        smaller, already = merged[-1] if merged else (step, 0)
        if merged and step % smaller == 0 and step // smaller <= already + 1:
            # Together they reach every multiple of the smaller step.
            merged[-1] = (smaller, already + step // smaller * times)
        else:
            merged.append((step, times))
    # What the steps up to one reach at most, and what divides all of them.
    farthest = list(accumulate((step * times for step, times in merged), initial=0))
    divisors = list(accumulate((step for step, _ in merged), math.gcd, initial=0))
    # The places to go on from, by the number of steps decided on. A recursive inner function would be a cycle.
    places = [iter((start,))]
    for _ in range(_MOST_TRIES):
        while (place := next(places[-1], None)) is None:
            places.pop()
            if not places:
                return False
        count = len(merged) + 1 - len(places)
        if place > high or place + farthest[count] < low:
            continue
        if count == 0:
            return True
        if low + (place - low) % divisors[count] > high:
            continue
        step, times = merged[count - 1]
        first = max(0, -((place + farthest[count - 1] - low) // step))
        last = min(times, (high - place) // step)
        places.append(iter(range(place + step * first, place + step * last + 1, step)))
    return True


_MOST_TRIES = 10_000
