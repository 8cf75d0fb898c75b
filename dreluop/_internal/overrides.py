"""Types and modes with a ``__torch_function__`` of their own, which get a call in our place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter
from torch.overrides import has_torch_function


def has_override(arguments: Sequence[Any]) -> bool:
    """Whether a type among these, or a mode, has its own ``__torch_function__`` to be called.

    A lazy parameter's only refuses. In what Dynamo traces only types that are no tensors: it calls the operators with
    a tensor of another type, and cannot trace how torch calls such a type for a function of ours.
    """
    if not has_torch_function(arguments):
        return False
    if torch.compiler.is_compiling():
        return any(not isinstance(one, Tensor) and hasattr(type(one), "__torch_function__") for one in arguments)
    return not any(type(argument) is UninitializedParameter for argument in arguments)
