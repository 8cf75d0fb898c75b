"""The shape rule of a cap: which elements of x share which cap (layer, channel or neuron)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# torch.fx.experimental.symbolic_shapes imports sympy, which takes half a second: only tracing needs it.


def has_unknown_sizes(t: torch.Tensor) -> bool:
    """Whether a compiler traces t without knowing some of its sizes (``x[mask]``, ``mark_unbacked``)."""
    # A loop, as a generator takes half a microsecond more.
    for size in t.shape:
        if type(size) is not int:
            break
    else:
        return False
    from torch.fx.experimental.symbolic_shapes import has_free_unbacked_symbols  # noqa: PLC0415

    return has_free_unbacked_symbols(t)


def may_be(condition: bool | torch.SymBool) -> bool:
    """Whether a condition on sizes holds, or may hold as a compiler does not know them."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_true  # noqa: PLC0415

    return guard_or_true(condition)


def same_shape(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes are equal. Sizes that a compiler does not know are compared when its program runs."""
    if not torch.compiler.is_compiling():
        return tuple(shape) == tuple(other)
    from torch.fx.experimental.symbolic_shapes import guard_or_true  # noqa: PLC0415

    if len(shape) != len(other):
        return False
    for size, expected in zip(shape, other, strict=True):
        if not guard_or_true(size == expected):
            return False
        torch._check(size == expected)
    return True


def granularity_of(x_shape: Sequence[int], cap_shape: Sequence[int], dim: int) -> str:
    """``"layer"``, ``"channel"`` or ``"neuron"``.

    Raises:
        ValueError: if the cap fits none of the three.
    """
    cap_ndim = len(cap_shape)
    if cap_ndim == 0 or (cap_ndim == 1 and cap_shape[0] == 1):
        return "layer"
    if cap_ndim > 1:
        if same_shape(cap_shape, x_shape[1:]):
            return "neuron"
        raise ValueError(
            f"cap: got shape {tuple(cap_shape)} for x of shape {tuple(x_shape)}; a cap of more than one dimension "
            f"is a neuron cap and must have shape x.shape[1:] = {tuple(x_shape[1:])}"
        )
    ndim = len(x_shape)
    if not -ndim <= dim < ndim:
        raise ValueError(f"dim: got {dim} for x of shape {tuple(x_shape)}; expected {-ndim} <= dim < {ndim}")
    if not same_shape(cap_shape, (x_shape[dim],)):
        raise ValueError(
            f"cap: got shape {tuple(cap_shape)} for x of shape {tuple(x_shape)} and dim={dim}; expected () or (1,) for "
            f"one cap, ({x_shape[dim]},) for one per channel of dim {dim}, or {tuple(x_shape[1:])} for one per neuron"
        )
    return "channel"


def check_bias(x_shape: Sequence[int], cap_shape: Sequence[int], bias_shape: Sequence[int], dim: int) -> None:
    """Raise ValueError unless a bias has the cap's shape (neuron caps) or ``(x.shape[dim],)`` (any other cap)."""
    if granularity_of(x_shape, cap_shape, dim) == "neuron":
        expected = tuple(cap_shape)
    else:
        ndim = len(x_shape)
        if not -ndim <= dim < ndim:
            raise ValueError(f"dim: got {dim} for x of shape {tuple(x_shape)}; expected {-ndim} <= dim < {ndim}")
        expected = (x_shape[dim],)
    if not same_shape(bias_shape, expected):
        raise ValueError(
            f"bias: got shape {tuple(bias_shape)} for x of shape {tuple(x_shape)} and a cap of shape "
            f"{tuple(cap_shape)}; expected {expected}"
        )


def bias_view(x_shape: Sequence[int], bias_shape: Sequence[int], dim: int) -> tuple[int, ...]:
    """Shape that makes a bias broadcast against x, and to which its gradient is summed."""
    if len(bias_shape) != 1:
        return tuple(bias_shape)
    view = [1] * len(x_shape)
    view[dim] = bias_shape[0]
    return tuple(view)


def broadcast_shape(x_shape: Sequence[int], cap_shape: Sequence[int], dim: int) -> tuple[int, ...]:
    """Shape that makes a cap broadcast against x, and to which a gradient of x's shape is summed.

    ===========  ========================  ============================
    granularity  cap shape                 result
    ===========  ========================  ============================
    layer        ``()`` or ``(1,)``        ``()``
    channel      ``(x.shape[dim],)``       ``(1, .., x.shape[dim], .., 1)``
    neuron       ``x.shape[1:]``           ``x.shape[1:]``
    ===========  ========================  ============================

    ``dim`` counts only for a channel cap: a one-dimensional cap with other than one element.

    Raises:
        ValueError: if the cap fits none of the three.
    """
    granularity = granularity_of(x_shape, cap_shape, dim)
    if granularity == "layer":
        return ()
    if granularity == "neuron":
        return tuple(cap_shape)
    view = [1] * len(x_shape)
    view[dim] = cap_shape[0]
    return tuple(view)


def cap_dimension(x_shape: Sequence[int], cap_shape: Sequence[int], dim: int, of_x: int) -> int | None:
    """The dimension of the cap along which its elements belong to slices of dimension ``of_x`` of x.

    None where every slice of that dimension has elements of every cap.
    """
    granularity = granularity_of(x_shape, cap_shape, dim)
    if granularity == "neuron":
        return of_x - 1 if of_x > 0 else None
    return 0 if granularity == "channel" and of_x == dim % len(x_shape) else None


def bias_dimension(x_shape: Sequence[int], bias_ndim: int, dim: int, of_x: int) -> int | None:
    """The same for a bias: a neuron's of more than one dimension, or a channel's."""
    if bias_ndim != 1:
        return of_x - 1 if of_x > 0 else None
    return 0 if of_x == dim % len(x_shape) else None
