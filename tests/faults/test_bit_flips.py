"""Flips are where and as many as asked for, and leave no trace after the block."""

from __future__ import annotations

import contextlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrize

import dreluop
from dreluop.faults import Injection, bit_flips
from dreluop.faults.bits import distinct

PLACES = ("weights", "caps", "inputs_of_activations", "activations")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Network(nn.Module):
    """An activation of each kind of call: module, in place, function, method, ours."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.capped = dreluop.DReLU(4, 0.5)
        self.fixed = dreluop.SReLU(2.0)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.capped(self.relu(self.conv(x)))
        return self.linear(self.fixed(F.gelu(x)).mean((2, 3)).clamp(min=0))


CALLS = 5


@pytest.fixture
def model() -> Network:
    torch.manual_seed(0)
    return Network().eval()


X = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def words_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone().view(torch.int32) for name, t in model.state_dict().items()}


def flipped_bits(before: dict[str, Tensor], after: dict[str, Tensor]) -> Counter[tuple[str, int, int]]:
    found: Counter[tuple[str, int, int]] = Counter()
    for name, words in before.items():
        for element, change in enumerate((words ^ after[name]).flatten().tolist()):
            found.update((name, element, bit) for bit in range(32) if change >> bit & 1)
    return found


@pytest.mark.parametrize("where", PLACES)
def test_everything_is_as_before_after_the_block_and_after_an_exception(model, where):
    before, y = words_of(model), model(X)
    for error in (None, KeyError("of the user")):
        with contextlib.suppress(KeyError), bit_flips(model, 0.1, where=where, generator=seeded()) as injection:
            assert not torch.equal(model(X), y)
            if error is not None:
                raise error
        assert injection.flips > 0
        assert not flipped_bits(before, words_of(model))
        assert torch.equal(model(X), y)
        assert not model._forward_hooks
        assert not model._forward_pre_hooks


def test_exactly_so_many_bits_of_the_weights_and_no_caps(model):
    before = words_of(model)
    with bit_flips(model, flips=37, generator=seeded()) as injection:
        found = flipped_bits(before, words_of(model))
    assert injection == Injection(37, 32 * sum(p.numel() for n, p in model.named_parameters() if "cap" not in n))
    assert len(found) == 37
    assert not any("cap" in name for name, _, _ in found)


def test_exactly_so_many_bits_of_the_caps_alone(model):
    before = words_of(model)
    with bit_flips(model, flips=9, where="caps", generator=seeded()) as injection:
        found = flipped_bits(before, words_of(model))
    assert injection == Injection(9, 32 * (4 + 1))
    assert len(found) == 9
    assert {name for name, _, _ in found} <= {"capped.cap", "fixed.cap"}


def test_caps_in_a_batch_norm_are_caps_too():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), dreluop.BatchNormDReLU2d(4))
    with bit_flips(model, 1.0, where="caps") as injection:
        pass
    assert injection.exposed == 32 * 4
    with bit_flips(model, 1.0):
        assert torch.equal(model[1].cap, torch.full((4,), 100.0))


def test_flips_at_a_rate_are_binomial(model):
    counts = []
    for seed in range(50):
        with bit_flips(model, 0.01, generator=seeded(seed)) as injection:
            counts.append(injection.flips)
    mean = injection.exposed * 0.01
    assert abs(sum(counts) / 50 - mean) < 4 * (mean / 50) ** 0.5
    assert len(set(counts)) > 5


@pytest.mark.parametrize(("rate", "share"), [(0.0, 0), (1.0, 1)])
def test_rates_of_zero_and_one(model, rate, share):
    before = words_of(model)
    with bit_flips(model, rate) as injection:
        found = flipped_bits(before, words_of(model))
    assert len(found) == injection.flips == share * injection.exposed


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_bits_that_may_flip(dtype):
    width = 8 * dtype.itemsize
    layer = nn.Linear(5, 7).to(dtype)
    integers = {16: torch.int16, 32: torch.int32, 64: torch.int64}[width]
    before = layer.weight.detach().clone().view(integers)
    with bit_flips(layer, flips=42, bits=[width - 1], generator=seeded()):
        after = layer.weight.detach().clone().view(integers)
    changed = before ^ after
    # The sign: of all 35 weights and 7 biases.
    assert bool((changed == torch.iinfo(integers).min).all())


def test_a_seed_gives_the_same_faults_whatever_the_memory_format(model):
    def outputs(model: nn.Module) -> dict[str, Tensor]:
        with bit_flips(model, flips=50, generator=seeded(3)):
            return {name: t.contiguous() for name, t in words_of(model).items()}

    plain = outputs(model)
    assert not flipped_bits(plain, outputs(model.to(memory_format=torch.channels_last)))
    assert plain.keys()


def test_tied_weights_are_hit_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    with bit_flips(model, 1.0) as injection:
        pass
    assert injection.exposed == 16 * 32


def test_every_way_to_call_an_activation_is_reached(model):
    with bit_flips(model, flips=1, where="activations") as injection:
        model(X)
        assert injection.flips == CALLS
        model(X)
        assert injection.flips == 2 * CALLS
        # Outside the model nothing is hit.
        assert torch.equal(F.relu(X), X)
    assert injection.flips == 2 * CALLS


def test_activations_are_hit_after_and_inputs_before():
    model = nn.Sequential(nn.ReLU())
    x = -torch.rand(4, 4) - 1
    sign = [31]
    with bit_flips(model, 1.0, where="inputs_of_activations", bits=sign):
        assert torch.equal(model(x), -x)
    with bit_flips(model, 1.0, where="activations", bits=sign):
        assert bool(torch.signbit(model(x)).all())
        assert bool((x < 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_stored_in_another_dtype(model, dtype):
    before = words_of(model)
    with bit_flips(model, 0.0, dtype=dtype) as injection:
        for name, p in model.named_parameters():
            expected = before[name].view(torch.float32)
            assert torch.equal(p, expected if "cap" in name else expected.to(dtype).float())
    assert injection.exposed == 8 * dtype.itemsize * sum(
        p.numel() for n, p in model.named_parameters() if "cap" not in n
    )
    with bit_flips(model, flips=5, dtype=dtype, bits=[0]):
        pass
    assert not flipped_bits(before, words_of(model))


def test_int8_weights_change_by_powers_of_two_of_their_scale(model):
    before = model.linear.weight.detach().clone()
    scale = before.abs().amax(1, keepdim=True) / 127
    with bit_flips(model, flips=6, dtype=torch.int8, generator=seeded()) as injection:
        codes = model.linear.weight.detach() / scale
        assert float((codes - codes.round()).abs().max()) < 1e-3
    assert injection.exposed == 8 * (model.linear.weight.numel() + model.conv.weight.numel())
    assert torch.equal(model.linear.weight, before)


@pytest.mark.parametrize(("total", "count"), [(10, 0), (10, 3), (10, 7), (10, 10), (10**15, 40)])
def test_distinct_numbers(total, count):
    found = distinct(total, count, seeded()).tolist()
    assert len(found) == count
    assert all(low < high for low, high in pairwise(found))
    assert all(0 <= one < total for one in found)


def test_every_set_of_numbers_is_as_likely():
    generator = seeded()
    found = Counter(tuple(distinct(5, 2, generator).tolist()) for _ in range(2000))
    assert len(found) == 10
    assert all(abs(count - 200) < 5 * 200**0.5 for count in found.values())


X_ONE = torch.zeros(1, 4)


def test_what_writes_to_out_leaves_x_and_hits_y():
    class Out(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(x, out=torch.empty_like(x))

    x = torch.rand(4, 4)
    before, model = x.clone(), Out()
    with bit_flips(model, 1.0, where="activations", bits=[31]):
        assert bool((model(x) < 0).all())
    with bit_flips(model, 1.0, where="inputs_of_activations", bits=[31]):
        assert torch.equal(model(x), torch.sigmoid(-before))
    assert torch.equal(x, before)


def test_memory_that_parameters_share():
    model = nn.Module()
    model.a = nn.Parameter(torch.ones(8))
    model.b = nn.Parameter(model.a.data)
    with bit_flips(model, 1.0, bits=[31]) as injection:
        assert bool((model.a == -1).all())
    assert injection.exposed == 8
    model.b = nn.Parameter(model.a.data[2:])
    with pytest.raises(ValueError, match="b: shares memory with a"), bit_flips(model, 1.0):
        pass
    model.b = nn.Parameter(torch.ones(1).expand(8))
    strides = r"b: got strides \(0,\) for shape \(8,\); expected memory of its own"
    with pytest.raises(ValueError, match=strides), bit_flips(model, 1.0):
        pass


def test_a_parametrized_cap_is_hit_in_its_original():
    model = dreluop.DReLU(4, init=1.0)
    parametrize.register_parametrization(model, "cap", nn.Softplus(), unsafe=True)
    before = model.cap.clone()
    with bit_flips(model, 1.0, where="caps", bits=[31]) as injection:
        assert not torch.equal(model.cap, before)
    assert injection.exposed == 4
    assert torch.equal(model.cap, before)


@pytest.mark.parametrize("training", [True, False])
def test_rrelu_is_reached(training):
    model = nn.Sequential(nn.RReLU(), nn.ReLU()).train(training)
    with bit_flips(model, flips=1, where="activations") as injection:
        model(torch.rand(3))
    assert injection.flips == 2


def test_a_model_that_calls_itself_is_hit_to_its_end():
    class Twice(nn.Module):
        def forward(self, x: Tensor, again: bool = True) -> Tensor:
            return F.relu(self(x, False)) if again else F.relu(x)

    model = Twice()
    with bit_flips(model, flips=1, where="activations") as injection:
        model(torch.rand(3))
    assert injection.flips == 2


def test_empty_parameters_and_numpy_integers():
    model = nn.Linear(3, 0)
    with pytest.raises(ValueError, match="expected a tensor of two dim"), bit_flips(model, 0.5, dtype=torch.int8):
        pass
    with bit_flips(nn.Linear(3, 2), flips=1, bits=[np.int64(3)]) as injection:
        assert injection.exposed == 8


WRONG = {
    "model": (lambda m: bit_flips("m", 0.1), TypeError, "model: got str; expected a torch.nn.Module"),
    "neither": (bit_flips, ValueError, "rate, flips: got both or neither; expected one of them"),
    "both": (lambda m: bit_flips(m, 0.1, flips=1), ValueError, "rate, flips: got both or neither"),
    "rate": (lambda m: bit_flips(m, 1.5), ValueError, r"rate: got 1.5; expected a probability, in \[0, 1\]"),
    "rate_nan": (lambda m: bit_flips(m, float("nan")), ValueError, "rate: got nan; expected a probability"),
    "rate_text": (lambda m: bit_flips(m, "0.1"), TypeError, "rate: got str"),
    "flips": (lambda m: bit_flips(m, flips=-1), ValueError, "flips: got -1; expected at least 0"),
    "too_many": (lambda m: bit_flips(m, flips=10**6), ValueError, "flips: got 1000000; expected at most 1760, the b"),
    "where": (lambda m: bit_flips(m, 0.1, where="biases"), ValueError, "where: got 'biases'; expected one of weights"),
    "dtype": (lambda m: bit_flips(m, 0.1, dtype=torch.int32), ValueError, "dtype: got torch.int32; expected one of"),
    "dtype_of_values": (
        lambda m: bit_flips(m, 0.1, where="activations", dtype=torch.int8), ValueError, "dtype: got torch.int8; exp"
    ),
    "bits": (lambda m: bit_flips(m, 0.1, bits=[32]), ValueError, "bits: got 32; expected numbers below 32"),
    "bits_twice": (lambda m: bit_flips(m, 0.1, bits=[1, 1]), ValueError, r"bits: got \[1, 1\]; expected at least one"),
    "one_bit": (lambda m: bit_flips(m, 0.1, bits=3), TypeError, "bits: got int; expected several ints"),
    "no_bits": (lambda m: bit_flips(m, 0.1, bits=[]), ValueError, r"bits: got \[\]; expected at least one"),
    "generator": (lambda m: bit_flips(m, 0.1, generator=3), TypeError, "generator: got int; expected a torch.Gen"),
    "no_caps": (lambda m: bit_flips(nn.Linear(2, 2), 0.1, where="caps"), ValueError, "has no DReLU or SReLU"),
    "no_weights": (lambda m: bit_flips(nn.ReLU(), 0.1), ValueError, "has no parameters but caps"),
    "no_int8": (
        lambda m: bit_flips(nn.BatchNorm1d(2), 0.1, dtype=torch.int8), ValueError, "dtype: got torch.int8; expected a"
    ),
    "meta": (lambda m: bit_flips(m.to("meta"), 0.1), ValueError, "conv.weight: got a tensor on the meta device"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_change_nothing(model, name):
    call, error, message = WRONG[name]
    before = words_of(model)
    with pytest.raises(error, match=message), call(model):
        pass
    if name != "meta":
        assert not flipped_bits(before, words_of(model))


def test_a_model_without_a_known_activation_is_refused_when_it_is_called():
    model = nn.Linear(4, 4)
    with bit_flips(model, 0.1, where="activations"), pytest.raises(ValueError, match="called no activation that is"):
        model(X_ONE)
    model(X_ONE)


def test_what_hides_its_activations_is_refused():
    compiled = bit_flips(torch.compile(nn.ReLU()), 0.1, where="activations")
    with pytest.raises(ValueError, match=r"model: got one of torch\.compile, which hides its activations"), compiled:
        pass
    layer = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)).eval()
    with torch.no_grad(), bit_flips(layer, 0.1, where="activations"), pytest.raises(ValueError, match="fast path"):
        layer(torch.rand(1, 2, 4))
