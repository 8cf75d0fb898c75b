"""torch's exception for memory that is not there: through the stable ABI it arrives as its base class, RuntimeError."""

from __future__ import annotations

import torch

# How torch's begin, of its own allocator (and csrc/torch/tensors.h) and of cudaMallocAsync.
_WORDS = ("CUDA out of memory.", "Allocation on device ")


def raise_as_of_torch(error: Exception) -> None:
    """Raise ``torch.OutOfMemoryError`` if the error is one in disguise."""
    if type(error) is RuntimeError and str(error).startswith(_WORDS):
        raise torch.OutOfMemoryError(str(error)) from error
