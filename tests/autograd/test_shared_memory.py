"""In place beside another tensor in the same memory: refused where an element is shared, and only there."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

import dreluop
from dreluop._internal import checks
from tests.support import oracle

SHAPE = (2, 8, 4, 4)
SPLITS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "halves_of_channels": lambda t: (t[:, :4], t[:, 4:]),
    "second_half_first": lambda t: (t[:, 4:], t[:, :4]),
    "every_other_channel": lambda t: (t[:, ::2], t[:, 1::2]),
    "halves_of_the_last": lambda t: (t[..., :2], t[..., 2:]),
    "every_other_of_the_last": lambda t: (t[..., 1::2], t[..., ::2]),
    "chunk": lambda t: t.chunk(2, dim=1),  # type: ignore[dict-item]
    "transposed": lambda t: (t[:, :, :2].transpose(1, 3), t[:, :, 2:].transpose(1, 3)),
    "a_corner_beside_another": lambda t: (t[:, :3, :, 1:3], t[:, 4:7, :, 2:]),
    "channels_last": lambda t: (
        t.view(2, 4, 4, 8).permute(0, 3, 1, 2)[:, :4], t.view(2, 4, 4, 8).permute(0, 3, 1, 2)[:, 4:]
    ),
    "a_triangle": lambda t: (t.flatten()[:9].as_strided((3, 2), (3, 1)), t.flatten()[2:].as_strided((3, 2), (3, 0))),
}  # fmt: skip


@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize("name", SPLITS)
def test_nothing_shared_is_written(name: str, save: str) -> None:
    whole = torch.randn(SHAPE)
    x, residual = SPLITS[name](whole)
    marks = torch.ones(SHAPE)
    SPLITS[name](marks)[0].zero_()
    before = whole.clone()
    want = oracle.forward(x + residual, torch.tensor(0.5))
    y = dreluop.capped_relu(x, 0.5, inplace=True, residual=residual, save=save)  # type: ignore[call-overload]
    assert y is x
    oracle.assert_same_bits(x, want)
    assert torch.equal(whole[marks != 0], before[marks != 0])


@pytest.mark.parametrize("balancer", [None, 0.5], ids=["", "balancer"])
def test_the_gradients_of_both_halves(balancer: float | None) -> None:
    given = torch.randn(SHAPE)
    results = []
    for together in (True, False):
        leaf, cap = given.clone().requires_grad_(), torch.full((4,), 0.5, requires_grad=True)
        whole = leaf * 1
        x, residual = whole[:, :4], whole[:, 4:]
        result = dreluop.capped_relu(x, cap, inplace=together, residual=residual, balancer=balancer)
        y, penalty = result if isinstance(result, tuple) else (result, torch.zeros(()))
        ((whole if together else torch.cat([y, residual], 1)).square().sum() + penalty).backward()
        results.append((leaf.grad, cap.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.usefixtures("both_nodes")
def test_a_cap_and_a_bias_between_the_elements_of_x() -> None:
    buffer = torch.randn(6, 10).abs()
    before = buffer.clone()
    dreluop.capped_relu(buffer[:, ::2], buffer[0, 1::2], inplace=True)
    oracle.assert_same_bits(buffer[:, ::2], oracle.forward(before[:, ::2], before[0, 1::2]))
    dreluop.capped_relu(buffer[:, ::2], buffer[1, 1::2], inplace=True, bias=buffer[2, 1::2])
    assert torch.equal(buffer[:, 1::2], before[:, 1::2])


@pytest.mark.parametrize(
    "other",
    [lambda t: t[:, 3:7], lambda t: t[:, ::2], lambda t: t[:, :4], lambda t: t.as_strided((2, 4, 4, 4), (1,) * 4, 53)],
    ids=["one_channel", "every_other_channel", "itself", "the_last_address"],
)
def test_what_shares_an_element_is_refused(other: Callable[[Tensor], Tensor]) -> None:
    whole = torch.randn(SHAPE)
    before = whole.clone()
    with pytest.raises(ValueError, match="inplace: residual lies in the memory of x"):
        dreluop.capped_relu(whole[:, :4], 0.5, inplace=True, residual=other(whole))
    assert torch.equal(whole, before)


def test_half_an_element_is_an_element() -> None:
    halves = torch.ones(8, dtype=torch.float16)
    x = halves.view(torch.float32)
    with pytest.raises(ValueError, match="inplace: cap lies in the memory of x"):
        dreluop.capped_relu(x, halves[3:4], inplace=True)
    # The second half of the first element belongs to x, that before it does not.
    dreluop.capped_relu(x[1:], halves[1:2], inplace=True)
    with pytest.raises(ValueError, match="inplace: cap lies in the memory of x"):
        dreluop.capped_relu(x[1:], halves[2:3], inplace=True)


def addresses(t: Tensor) -> set[int]:
    starts = (sum(i * s for i, s in zip(index, t.stride(), strict=True)) for index in product(*map(range, t.shape)))
    size = t.element_size()
    return {t.data_ptr() + start * size + byte for start in starts for byte in range(size)}


def test_the_decision_is_that_of_all_addresses() -> None:
    draw = random.Random(0)
    memory = torch.zeros(2000)

    def view() -> Tensor:
        ndim = draw.randrange(4)
        shape = [draw.randint(1, 4) for _ in range(ndim)]
        strides = [draw.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 32]) for _ in range(ndim)]
        dtype = draw.choice([torch.float32, torch.float32, torch.float16, torch.float64])
        return memory.view(dtype).as_strided(shape, strides, draw.randrange(60))

    shared = 0
    for _ in range(400):
        x, other = view(), view()
        want = bool(addresses(x) & addresses(other))
        shared += want
        assert checks._share_memory(x, other) == want, (x.shape, x.stride(), other.shape, other.stride())
    assert 40 < shared < 360


def test_a_search_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # 3 i + 5 j = 4 has no solution, but its divisor, 1, does not say so.
    arguments = (-4, [(3, 9), (5, 9)], 0, 0)
    assert not checks._reaches(*arguments)
    monkeypatch.setattr(checks, "_MOST_TRIES", 1)
    assert checks._reaches(*arguments)
