"""torch's exception for memory that is not there: through the stable ABI it arrives as its base class, RuntimeError."""

from __future__ import annotations

import torch

# How torch's begin, of its own allocator (and csrc/torch/tensors.h) and of cudaMallocAsync.
_WORDS = ("CUDA out of memory.", "Allocation on device ")
_WITHOUT_A_REASON = "dreluop could not allocate"  # of csrc/torch/tensors.h, where torch (before 2.13) does not say why


def raise_as_of_torch(error: Exception) -> None:
    """Raise ``torch.OutOfMemoryError`` if the error is one in disguise."""
    words = str(error)
    if type(error) is RuntimeError and words.startswith(_WORDS):
        if _WITHOUT_A_REASON in words:
            # A device that failed before fails here too, and says so itself.
            torch.cuda.mem_get_info()
        raise torch.OutOfMemoryError(words) from error
