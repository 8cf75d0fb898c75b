"""What the tests of the fast path call it with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

both = pytest.mark.usefixtures("both_nodes")


def inputs(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(shape or (4, 3), requires_grad=True), torch.rand(shape[1:2] or 3, requires_grad=True)
