"""What graphs keep, counted by walking them, against hooks on saved tensors and against the known need."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.harness import implementations as c
from benchmarks.harness.memory import Saved, saved_for_backward

SHAPE = (16, 40)
NUMBERS = 16 * 40
KNOWN = {
    c.OURS.name: Saved(0, saves_x=False, saves_y=True),
    c.REFERENCE.name: Saved(0, saves_x=False, saves_y=True),
    # 2 bits for each element.
    c.OURS_MASK.name: Saved(NUMBERS // 4, saves_x=False, saves_y=False),
    # The bounds, one for each channel: zeros beside the cap.
    c.CLAMP.name: Saved(4 * 40, saves_x=True, saves_y=False),
    c.RELU_MINIMUM.name: Saved(0, saves_x=True, saves_y=True),
    # Two masks, of a byte for each element.
    c.WHERE.name: Saved(2 * NUMBERS, saves_x=False, saves_y=False),
    c.RELU6.name: Saved(0, saves_x=True, saves_y=False),
}


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator).requires_grad_(), torch.ones(40, requires_grad=True)


@pytest.mark.parametrize("name", KNOWN)
def test_known_implementations(name: str) -> None:
    x, cap = inputs()
    assert saved_for_backward(c.IMPLEMENTATIONS[name].ready()(x, cap, 1), x, cap) == KNOWN[name]


@pytest.mark.parametrize("name", [*KNOWN, c.HARDTANH.name])
def test_hooks_on_saved_tensors_see_the_same(name: str) -> None:
    x, cap = inputs()
    packed: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        packed[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = c.IMPLEMENTATIONS[name].ready()(x, cap, 1)
    of_x, of_y, _ = [packed.pop(tensor.untyped_storage().data_ptr(), None) for tensor in (x, y, cap)]
    expected = Saved(sum(packed.values()), of_x is not None, of_y is not None)
    assert saved_for_backward(y, x, cap) == expected


def test_a_storage_counts_once_however_many_nodes_hold_views_of_it() -> None:
    x = torch.randn(8, 4, requires_grad=True)
    between = x.exp()
    y = between[:4] * between[4:] + between[:4]
    assert saved_for_backward(y, x) == Saved(8 * 4 * 4, saves_x=False, saves_y=False)


def test_a_storage_counts_whole_where_a_part_is_held() -> None:
    x = torch.randn(4, requires_grad=True)
    large = torch.randn(1000)
    assert saved_for_backward(x * large[:4], x).saved_bytes == 4000
    assert saved_for_backward(x * large[:4], x, large).saved_bytes == 0
