"""What the C++ autograd node keeps, frees and gives back, and what hooks on saved tensors may do to it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import dreluop
from dreluop.autograd import fast_path
from tests.autograd.calls import both, inputs


@both
def test_nothing_is_kept_when_all_is_over() -> None:
    gc.disable()
    try:
        x, cap = inputs()
        y = dreluop.capped_relu(x, cap)
        y.backward(torch.ones_like(y))
        torch.autograd.grad(dreluop.capped_relu(x, cap).sum(), x, create_graph=True)
        alive = [weakref.ref(t) for t in (x, cap, y, x.grad, cap.grad)]
        del x, cap, y
        assert [t() for t in alive] == [None] * 5
    finally:
        gc.enable()


@pytest.mark.slow
def test_a_very_deep_graph_can_be_freed(compiled: None) -> None:
    x, cap = inputs()
    y = x
    for _ in range(100_000):
        y = dreluop.capped_relu(y, cap)
    del y


def unpacked_as(change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    x, cap = inputs()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, change):
        return dreluop.capped_relu(x, cap), x, cap


@both
def test_what_a_hook_spoils_is_said_in_the_same_words() -> None:
    y, x, _ = unpacked_as(lambda t: t[:2])
    with pytest.raises(ValueError, match=r"grad: got shape \(4, 3\); expected that of the saved output, \(2, 3\)"):
        torch.autograd.grad(y.sum(), x)


@both
def test_an_exception_of_a_hook_arrives_as_it_is() -> None:
    def broken(_: Tensor) -> Tensor:
        raise KeyError("the tensor is gone")

    y, x, _ = unpacked_as(broken)
    with pytest.raises(KeyError, match="the tensor is gone"):
        torch.autograd.grad(y.sum(), x)


@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
@pytest.mark.parametrize("saved_before", [0, 1])
def test_what_cannot_be_saved_is_given_back(compiled: None, inplace: bool, saved_before: int) -> None:
    """A hook that raises, as checkpointing does where it has all that it wants: nothing may hold y from then on."""
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if len(packed) == saved_before:
            raise KeyError("enough")
        packed.append(tensor.detach())
        return tensor

    gc.disable()
    try:
        x, cap = inputs()
        given = x * 1
        kept = weakref.ref(given)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), pytest.raises(KeyError, match="enough"):
            dreluop.capped_relu(given, cap, inplace=inplace)
        if inplace:
            with pytest.raises(RuntimeError, match="already been freed"):
                given.sum().backward()
        del given
        packed.clear()
        assert kept() is None
    finally:
        gc.enable()


@both
@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
def test_checkpointing_leaves_nothing_behind(inplace: bool) -> None:
    made: list[weakref.ref[Tensor]] = []

    def region(x: Tensor) -> Tensor:
        y = dreluop.capped_relu(x * 2, torch.ones(3), inplace=inplace)
        made.append(weakref.ref(y))
        return y

    gc.disable()
    try:
        checkpoint(region, inputs()[0], use_reentrant=False).sum().backward()
        assert made and not any(one() is not None for one in made)
    finally:
        gc.enable()


def test_switched_off_by_several_threads_at_once(compiled: None) -> None:
    first, second = fast_path.switched_off(), fast_path.switched_off()
    served = fast_path.capped_relu
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert fast_path.capped_relu is None
    second.__exit__(None, None, None)
    assert fast_path.capped_relu is served is not None


def test_memory_that_backward_lacks_is_torchs_exception(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the operator refuses in C++ is asked of Python, here of one whose operators have no memory either.
    def fails(*_: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 128 TiB")

    y, x, _ = unpacked_as(lambda t: t[:2])
    monkeypatch.setattr(fast_path.DEFAULT, "capped_relu_backward", fails)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 128 TiB"):
        torch.autograd.grad(y.sum(), x)
