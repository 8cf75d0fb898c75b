"""Copies of a model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
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
    for tensor in _held(model):
        if not tensor.is_leaf:
            memo.setdefault(id(tensor), tensor.detach().clone())
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # what a user's modules hold may refuse to be copied in any way
        raise ValueError(f"model: it cannot be copied: {error}") from error


def _held(model: nn.Module) -> Iterator[Tensor]:
    """The tensors in attributes of its modules, and in lists and dictionaries there."""
    for module in model.modules():
        for value in vars(module).values():
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            yield from (part for part in parts if isinstance(part, Tensor))
