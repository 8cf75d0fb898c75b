"""Activation checkpointing, hooks on what is saved, a real residual block: gradients, and the bytes that are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dreluop
from dreluop.surgery import replace_activations
from tests.support.backends import storages
from tests.support.optional import torchvision_or_skip

pytestmark = pytest.mark.usefixtures("both_nodes")

SAVES = ("output", "mask")
by_save = pytest.mark.parametrize("save", SAVES)
by_inplace = pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
by_balancer = pytest.mark.parametrize("balancer", [None, 0.5], ids=["", "balancer"])


def step(
    device: torch.device, how: Callable[..., Any] | None, save: str, inplace: bool, balancer: float | None
) -> list[Tensor]:
    """Gradients of a small network, some of it called through ``how``."""
    torch.manual_seed(0)
    weight, cap, x = (t.to(device).requires_grad_() for t in (torch.randn(6, 6), torch.rand(6), torch.randn(20, 6)))

    def part(x: Tensor, cap: Tensor) -> Any:
        return dreluop.capped_relu(x @ weight, cap, save=save, inplace=inplace, balancer=balancer)

    result = part(x, cap) if how is None else how(part, x, cap)
    y, penalty = result if isinstance(result, tuple) else (result, 0)
    loss = (y @ weight).square().sum() + penalty
    loss.backward()
    return [x.grad, weight.grad, cap.grad]


@by_balancer
@by_inplace
@by_save
@pytest.mark.parametrize("reentrant", [False, True], ids=["not_reentrant", "reentrant"])
def test_checkpointed_gradients_are_the_same(
    device: torch.device, reentrant: bool, save: str, inplace: bool, balancer: float | None
) -> None:
    calls = 0

    def through(part: Callable[..., Any], *arguments: Tensor) -> Any:
        def counted(*arguments: Tensor) -> Any:
            nonlocal calls
            calls += 1
            return part(*arguments)

        return checkpoint(counted, *arguments, use_reentrant=reentrant)

    got = step(device, through, save, inplace, balancer)
    assert calls == 2, "backward computes the part again"
    for one, other in zip(got, step(device, None, save, inplace, balancer), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_keeps_nothing_of_the_activation(device: torch.device, saved: list[Tensor]) -> None:
    x, cap = (t.to(device).requires_grad_() for t in (torch.randn(64, 6), torch.rand(6)))
    y = checkpoint(lambda x: dreluop.capped_relu(x, cap, save="mask"), x, use_reentrant=False)
    assert y.requires_grad
    assert storages(*saved).keys() <= {x.data_ptr()}


@by_balancer
@by_inplace
@by_save
def test_hooks_may_move_what_is_saved(device: torch.device, save: str, inplace: bool, balancer: float | None) -> None:
    expected = step(device, None, save, inplace, balancer)
    moved: list[int] = []

    def to_bytes(t: Tensor) -> Any:
        moved.append(t.nbytes)
        return t.dtype, t.detach().clone()

    with torch.autograd.graph.saved_tensors_hooks(to_bytes, lambda packed: packed[1]):
        got = step(device, None, save, inplace, balancer)
    assert moved
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


def block(fuse: bool, inplace: bool) -> nn.Module:
    """torchvision's basic block, its ReLUs (in place) replaced."""
    torchvision_or_skip()
    from torchvision.models.resnet import BasicBlock  # noqa: PLC0415 (optional)

    torch.manual_seed(0)
    made = BasicBlock(8, 8)
    replace_activations(made, init=0.5, fuse=fuse)
    for module in made.modules():
        if isinstance(module, dreluop.DReLU):
            assert module.inplace
            module.inplace = inplace
    return made


@pytest.mark.parametrize("fuse", [False, True], ids=["", "fuse"])
def test_in_place_in_a_residual_block(device: torch.device, fuse: bool, saved: list[Tensor]) -> None:
    torch.manual_seed(1)
    data = torch.randn(4, 8, 9, 9).to(device)
    results, kept = [], []
    for inplace in (False, True):
        module = block(fuse, inplace).to(device)
        x = data.clone().requires_grad_()
        saved.clear()
        # The block keeps its input for the residual sum; what is written over is the batch norm's result.
        y = module(x * 1)
        known = {p.data_ptr() for p in module.parameters()}
        kept.append(sum(size for at, size in storages(*saved).items() if at not in known))
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in module.parameters())])
    for got, want in zip(results[1], results[0], strict=True):
        # cuDNN may add up in another order from call to call.
        tolerance = None if device.type == "cpu" else 1e-4
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    # Of N elements: the block's input, two results of convolutions, which the batch norms keep, and two of
    # activations; nothing for the activations themselves.
    assert all(size < 5.2 * data.nbytes for size in kept)
    assert kept[1] <= kept[0]


def test_in_place_over_what_a_layer_before_keeps_is_an_error_that_says_so(device: torch.device) -> None:
    # sigmoid needs its own result for backward; a batch norm needs its argument, and so may be written over.
    x, cap = torch.randn(4, 3, device=device, requires_grad=True), torch.full((3,), 0.6, device=device)
    y = dreluop.capped_relu(torch.sigmoid(x), cap, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    hidden = x * 1
    later = hidden.exp() * hidden
    dreluop.capped_relu(hidden, cap, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        later.sum().backward()
