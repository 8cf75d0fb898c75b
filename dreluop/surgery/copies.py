"""Copies of a model, and the objects that the lists, dictionaries, tuples and partials in one hold."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn


def copied(model: nn.Module, shared: Iterable[Any] = ()) -> nn.Module:
    """A deep copy, also of tensors that torch refuses to copy as they have a gradient function.

    Hooks compute such tensors in each call (``torch.nn.utils.weight_norm``, ``prune``). The copy holds their values.

    Args:
        model: left as it is.
        shared: what the copy holds itself, no copy of it.

    Raises:
        ValueError: something in the model cannot be copied.
    """
    memo: dict[int, Any] = {id(one): one for one in shared}
    held = (part for module in model.modules() for part in parts(vars(module)))
    for tensor in (part for part in held if isinstance(part, Tensor) and not part.is_leaf):
        memo.setdefault(id(tensor), tensor.detach().clone())
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # what a user's modules hold may refuse to be copied in any way
        raise ValueError(f"model: it cannot be copied: {error}") from error


def substituted(
    value: Any,
    new_of: Callable[[Any], Any],
    assign: Callable[[Any, Any, Any], Any] = operator.setitem,
    done: set[int] | None = None,
) -> Any:
    """A value with ``new_of(part)`` for each part of its lists, dictionaries, tuples and partials.

    Lists and dictionaries change in place, by ``assign(holder, key, new)``, as others may hold them.
    """
    done = set() if done is None else done
    if isinstance(value, list | dict):
        if id(value) not in done:
            done.add(id(value))
            for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
                new = substituted(part, new_of, assign, done)
                if new is not part:
                    assign(value, key, new)
        return value
    if isinstance(value, tuple):
        new_parts = [substituted(part, new_of, assign, done) for part in value]
        is_same = all(new is old for new, old in zip(new_parts, value, strict=True))
        return value if is_same else getattr(value, "_make", tuple)(new_parts)
    if isinstance(value, functools.partial):
        held = (value.func, value.args, value.keywords)
        function, args, keywords = new_held = substituted(held, new_of, assign, done)
        return value if new_held is held else functools.partial(function, *args, **keywords)
    return new_of(value)


def parts(value: Any) -> list[Any]:
    """The objects in a value's lists, dictionaries, tuples and partials; itself, if it is none of these."""
    found: list[Any] = []
    substituted(value, lambda part: found.append(part) or part)  # type: ignore[func-returns-value]
    return found
