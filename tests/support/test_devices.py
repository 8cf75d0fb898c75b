"""The mover behind the tests of other devices, tried between the CPU and itself."""

from __future__ import annotations

import pytest
import torch

from tests.support.cases import LAYOUTS, OVERLAPPING
from tests.support.devices import moved, on_device

CPU = torch.device("cpu")


@pytest.mark.parametrize("layout", [name for name in (LAYOUTS | OVERLAPPING) if name != "channels_last_3d"])
def test_a_copy_has_the_same_layout_and_surroundings(layout: str) -> None:
    t = (LAYOUTS | OVERLAPPING)[layout](torch.randn(2, 3, 4, 5))
    copy = moved(t, CPU)
    assert torch.equal(copy, t)
    assert copy.stride() == t.stride()
    assert copy.storage_offset() == t.storage_offset()
    assert copy.untyped_storage().tolist() == t.untyped_storage().tolist()
    assert copy.untyped_storage().data_ptr() != t.untyped_storage().data_ptr()


@pytest.mark.parametrize("fails", [False, True], ids=["", "fails"])
def test_writes_come_back_with_shared_memory_and_after_an_error(fails: bool) -> None:
    buffer = torch.zeros(10)

    def write(first: torch.Tensor, rest: list[torch.Tensor], number: int) -> torch.Tensor:
        assert first.untyped_storage().data_ptr() == rest[0].untyped_storage().data_ptr() != buffer.data_ptr()
        first.fill_(number)
        rest[0].add_(1)
        if fails:
            raise ValueError("too late")
        return first[::2]

    call = on_device(write, CPU)
    if fails:
        with pytest.raises(ValueError, match="too late"):
            call(buffer[2:6], [buffer[5:8]], 7)
    else:
        assert call(buffer[2:6], [buffer[5:8]], 7).tolist() == [7, 7]
    assert buffer.tolist() == [0, 0, 7, 7, 7, 8, 1, 1, 0, 0]
