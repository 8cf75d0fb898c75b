"""Everything in this folder needs a GPU and the native CUDA kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.backends import native_cuda_or_skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def cuda_kernels() -> Iterator[None]:
    native_cuda_or_skip()
    yield
    # An error of a kernel shows in the test that launched it.
    torch.cuda.synchronize()
