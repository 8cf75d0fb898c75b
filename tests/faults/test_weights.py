"""Weights with a check bit: what a fault hits is found and mended, and nothing else is touched."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreluop.faults import bit_flips, protect_weights
from dreluop.faults.bits import as_words, width_of
from dreluop.faults.weights import CHECKED_BITS, LIMITS_COPIES

DTYPES = tuple(CHECKED_BITS)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(20, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 12)).to(dtype).eval()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def above_mantissa(dtype: torch.dtype) -> int:
    """Bits of sign and exponent."""
    return width_of(dtype) + round(math.log2(torch.finfo(dtype).eps))


def set_bit(t: Tensor, element: int, bit: int) -> None:
    words = as_words(t.detach()).view(-1)
    words[element] ^= torch.tensor(1, dtype=words.dtype) << bit


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_weight_moves_by_one_unit_in_the_last_place_at_most(dtype: torch.dtype):
    model = network(dtype)
    before = snapshot(model)
    protect_weights(model)
    for name, now in snapshot(model).items():
        moved = (as_words(now).long() - as_words(before[name]).long()).abs()
        assert moved.max() <= 1
        for word in as_words(now).view(-1).tolist():
            bits = f"{word % 2 ** width_of(dtype):0{width_of(dtype)}b}"
            assert bits[: above_mantissa(dtype)].count("1") % 2 == int(bits[-1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_flip_of_sign_or_exponent_is_found(dtype: torch.dtype):
    model = network(dtype)
    protected = protect_weights(model, copies_below=0)
    clean = snapshot(model)
    weight = model[0].weight
    mean = clean["0.weight"].double().mean().to(dtype)
    for index in range(above_mantissa(dtype)):
        set_bit(weight, 7 + index, width_of(dtype) - 1 - index)
    repair = protected.repair(model)
    assert (repair.restored, repair.dropped) == (0, above_mantissa(dtype))
    hit = slice(7, 7 + above_mantissa(dtype))
    torch.testing.assert_close(weight.detach().view(-1)[hit], mean.expand(above_mantissa(dtype)), rtol=0.02, atol=0)
    weight.detach().view(-1)[hit] = clean["0.weight"].view(-1)[hit]
    assert all(torch.equal(p, clean[name]) for name, p in model.named_parameters()), "another element was changed"


def test_a_repair_of_nothing_and_a_second_repair_change_nothing():
    model = network()
    protected = protect_weights(model)
    clean = snapshot(model)
    assert protected.repair(model) == protected.repair(model)
    assert protected.repair(model).checked == sum(p.numel() for p in model.parameters())
    set_bit(model[0].weight, 3, 30)
    assert protected.repair(model).dropped == 1
    assert (protected.repair(model).restored, protected.repair(model).dropped) == (0, 0)
    assert torch.equal(model[3].weight, clean["3.weight"])


def test_a_value_out_of_range_is_found_where_its_parity_fits():
    model = network()
    protected = protect_weights(model, copies_below=0)
    # Two bits of the exponent: the parity is right again.
    set_bit(model[0].weight, 5, 30)
    set_bit(model[0].weight, 5, 23)
    assert not -1 < model[0].weight.view(-1)[5] < 1
    assert protected.repair(model).dropped == 1
    assert model[0].weight.abs().max() < 1


@pytest.mark.parametrize("hit", ["model", "first copy", "second copy"])
def test_small_tensors_are_restored_bit_for_bit(hit: str):
    model = network()
    protected = protect_weights(model, copies_below=41)
    assert protected.small == ["0.bias", "1.weight", "1.bias", "3.bias"]
    clean = snapshot(model)
    bias = model[1].bias
    target = bias if hit == "model" else protected.copies[2].detach()[0 if hit == "first copy" else 1]
    for element, bit in ((0, 0), (1, 11), (39, 31)):
        set_bit(target, element, bit)
    assert protected.repair(model).restored == (3 if hit == "model" else 0)
    assert all(torch.equal(as_words(p.detach()), as_words(clean[name])) for name, p in model.named_parameters())
    assert torch.equal(protected.copies[2][0], protected.copies[2][1])


@pytest.mark.parametrize("row", range(3), ids=["low", "high", "mean"])
def test_limits_are_voted_before_they_are_used(row: int):
    model = network()
    protected = protect_weights(model)
    limits = protected.limits[0].detach()
    right = limits[0].clone()
    # Less than half of the copies, each another bit.
    for copy_index in range(LIMITS_COPIES // 2):
        set_bit(limits[copy_index], row, 25 + copy_index)
    assert protected.repair(model).dropped == 0
    assert torch.equal(limits, right.expand_as(limits))


def test_rates_that_destroy_a_network_leave_it_nearly_as_it_was():
    model = network()
    protected = protect_weights(model)
    both = nn.ModuleList([model, protected])
    x = torch.randn(64, 20)
    clean = model(x).detach()
    before = snapshot(both)
    with bit_flips(both, 1e-3, generator=torch.Generator().manual_seed(5)) as injection:
        assert injection.flips > 20
        hit = model(x).detach()
        protected.repair(model)
        repaired = model(x).detach()
    assert not (hit - clean).abs().max() < 10, "the faults did no harm"
    assert (repaired - clean).abs().mean() < 0.1 * clean.abs().mean()
    assert all(torch.equal(as_words(p.detach()), as_words(before[name])) for name, p in both.named_parameters())


def test_it_is_saved_and_copied_with_its_numbers():
    model = network()
    protected = protect_weights(model)
    other = protect_weights(network())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(math.nan)
    other.load_state_dict(protected.state_dict())
    for one in (other, copy.deepcopy(protected)):
        set_bit(model[0].weight, 3, 30)
        assert one.repair(model).dropped == 1
    assert not any(p.requires_grad for p in protected.parameters())


def test_trained_weights_are_refused_and_left_alone():
    model = network()
    protected = protect_weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"weights fail their check; they were changed since protect_weights"):
        protected.repair(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("name", ["3.weight", "1.weight"])
def test_one_trained_tensor_is_enough(name: str):
    model = network()
    protected = protect_weights(model, copies_below=41)
    with torch.no_grad():
        model.get_parameter(name).add_(0.01)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"{name}: .* weights fail their check"):
        protected.repair(model)
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())


REFUSED: dict[str, tuple[Callable[[nn.Sequential], Any], dict[str, Any], type[Exception], str]] = {
    "no module": (lambda _: 3, {}, TypeError, "model: got int"),
    "no parameters": (lambda _: nn.ReLU(), {}, ValueError, "has no parameters"),
    "NaN": (lambda m: m[0].weight.data.view(-1)[:1].fill_(math.nan), {}, ValueError, r"0\.weight: got NaN or infinity"),
    "meta": (lambda m: m.to("meta"), {}, ValueError, "0.weight: got a tensor on the meta device"),
    "int": (
        lambda m: m.register_parameter("n", nn.Parameter(torch.ones(1, dtype=torch.int8), requires_grad=False)),
        {},
        TypeError,
        "n: got a Tensor of torch.int8; expected a plain tensor of torch.float16",
    ),
    "negative": (lambda _: None, {"copies_below": -1}, ValueError, "copies_below: got -1; expected at least 0"),
    "no int": (lambda _: None, {"copies_below": 1.5}, TypeError, "copies_below: got float"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str):
    change, options, error, words = REFUSED[name]
    model: Any = network()
    changed = change(model)
    if name in ("no module", "no parameters"):
        model = changed
    with pytest.raises(error, match=words):
        protect_weights(model, **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m[0].to(torch.float64), r"0\.weight: got torch.float64; expected torch.float32"),
        (lambda m: setattr(m, "0", nn.Identity()), "got 4 tensors of weights; expected the 6 protected"),
        (lambda m: setattr(m, "3", nn.Linear(40, 11)), r"3\.bias: got shape \(11,\); expected \(12,\)"),
    ],
)
def test_another_model_is_refused(change: Callable[[Any], Any], words: str):
    model = network()
    protected = protect_weights(model)
    change(model)
    with pytest.raises(ValueError, match=words):
        protected.repair(model)
