"""Memory that a graph keeps for backward, exactly: the storages that its nodes hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor


class Saved(NamedTuple):
    """What the graph of one activation holds for backward.

    Attributes:
        saved_bytes: of the storages that it holds, each once, those of its inputs and of y left out: what the
            activation adds in any network.
        saves_x: whether it holds x, which then stays although nothing after the activation needs it.
        saves_y: whether it holds y, which the next layer mostly holds anyway.
    """

    saved_bytes: int
    saves_x: bool
    saves_y: bool


def saved_for_backward(y: Tensor, x: Tensor, *others: Tensor) -> Saved:
    """What y's graph holds.

    Args:
        y: a result with a graph, not written over x.
        x: the activation's input.
        others: cap, bias and residual, which exist anyway.
    """
    found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _saved(y)}
    of_x, of_y, *_ = [found.pop(tensor.untyped_storage().data_ptr(), None) for tensor in (x, y, *others)]
    return Saved(sum(found.values()), of_x is not None, of_y is not None)


def _saved(y: Tensor) -> Iterator[Tensor]:
    waiting: list[Any] = [y.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        # Those of Python have a tuple, those of C++ an attribute for each.
        names = [name for name in dir(node) if name.startswith("_saved_")]
        values = node.saved_tensors if hasattr(node, "saved_tensors") else [getattr(node, name) for name in names]
        for value in values:
            for one in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(one, Tensor):
                    yield one
