"""SReLU, DReLU and LazyDReLU as modules: repr, state, copies, devices, training."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import nn
from torch.nn.parameter import UninitializedParameter

import dreluop
from dreluop import DReLU, LazyDReLU, SReLU
from tests.support import oracle
from tests.support.cases import DTYPES, dtype_id


def test_repr() -> None:
    modules = [
        SReLU(2),
        SReLU(torch.tensor([1.0, 2.0]), dim=-1),
        SReLU(torch.ones(2, 3), inplace=True, save="mask"),
        SReLU(torch.ones(1, device="meta")),
        DReLU(),
        DReLU(64, init=6.0, dim=-1),
        DReLU((3, 4), inplace=True),
        DReLU(save="mask"),
        LazyDReLU(),
        LazyDReLU("channel", init=0.5),
        SReLU(2, above="zero", nan="zero"),
        DReLU(save="mask", above="zero"),
        DReLU(nan="zero"),
    ]
    assert_expected_inline(
        "\n".join(map(repr, modules)),
        """\
SReLU(cap=2)
SReLU(cap=(2,), dim=-1)
SReLU(cap=(2, 3), inplace=True, save="mask")
SReLU(cap=(1,))
DReLU(1, init=100)
DReLU(64, init=6, dim=-1)
DReLU((3, 4), init=100, inplace=True)
DReLU(1, init=100, save="mask")
LazyDReLU("layer", init=100)
LazyDReLU("channel", init=0.5)
SReLU(cap=2, above="zero", nan="zero")
DReLU(1, init=100, save="mask", above="zero")
DReLU(1, init=100, nan="zero")""",
    )


FAULTY = torch.tensor([[0.5, 1.0, 1.5, -1.0, torch.inf, torch.nan]])
RESULTS = {
    ("cap", "propagate"): [0.5, 1, 1, 0, 1, torch.nan],
    ("zero", "propagate"): [0.5, 1, 0, 0, 0, torch.nan],
    ("cap", "zero"): [0.5, 1, 1, 0, 1, 0],
    ("zero", "zero"): [0.5, 1, 0, 0, 0, 0],
}


@pytest.mark.parametrize("options", RESULTS, ids="-".join)
@pytest.mark.parametrize(
    "make",
    [SReLU, lambda cap, **more: DReLU(6, cap, **more), lambda cap, **more: LazyDReLU("channel", cap, **more)],
    ids=["SReLU", "DReLU", "LazyDReLU"],
)
def test_what_is_above_and_nan(make: Any, options: tuple[str, str]) -> None:
    module = make(1.0, above=options[0], nan=options[1])
    expected = torch.tensor([RESULTS[options]])
    oracle.assert_same_bits(module(FAULTY), expected)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        oracle.assert_same_bits(other(FAULTY), expected)
        assert repr(other) == repr(module)


@pytest.mark.parametrize("make", [SReLU, DReLU], ids=["SReLU", "DReLU"])
def test_a_pickle_older_than_above_and_nan(make: Any) -> None:
    old = make(1.0) if make is SReLU else make(init=1.0)
    del old.above, old.nan
    loaded = pickle.loads(pickle.dumps(old))
    assert torch.equal(loaded(FAULTY[:, :5]), torch.tensor([[0.5, 1, 1, 0, 1]]))
    assert repr(loaded) == repr(make(1.0) if make is SReLU else make(init=1.0))


def test_repr_of_a_lazy_module_after_its_first_input() -> None:
    module = LazyDReLU("neuron", init=3)
    module(torch.ones(2, 4, 5))
    assert repr(module) == "DReLU((4, 5), init=3)"


@pytest.mark.parametrize("num_parameters", [1, 3, (1,), (3,), (3, 5), [3, 5], torch.Size((3, 5))], ids=str)
def test_cap_is_a_parameter_with_at_least_one_dimension(num_parameters: Any) -> None:
    module = DReLU(num_parameters, init=2.5)
    assert [name for name, _ in module.named_parameters()] == ["cap"]
    shape = (num_parameters,) if isinstance(num_parameters, int) else tuple(num_parameters)
    assert module.cap.shape == shape
    assert torch.equal(module.cap, torch.full(shape, 2.5))
    assert module.num_parameters == (shape[0] if len(shape) == 1 else shape)


def test_fixed_cap_is_a_buffer_and_a_copy() -> None:
    cap = torch.ones(3)
    module = SReLU(cap)
    assert [*module.parameters()] == []
    assert [name for name, _ in module.named_buffers()] == ["cap"]
    cap.fill_(5)
    assert module.cap.tolist() == [1, 1, 1]
    assert SReLU(2).cap.shape == (1,)
    assert not SReLU(torch.ones(3, requires_grad=True)).cap.requires_grad


BAD_ARGUMENTS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "zero": (lambda: DReLU(0), ValueError, "num_parameters: got 0; expected a positive int or a shape"),
    "negative": (lambda: DReLU(-1), ValueError, "num_parameters: got -1; expected a positive int or a shape"),
    "empty_shape": (lambda: DReLU(()), ValueError, r"num_parameters: got \(\); expected a positive int or a shape"),
    "zero_in_shape": (lambda: DReLU((3, 0)), ValueError, r"num_parameters: got \(3, 0\); expected a positive int"),
    "float": (lambda: DReLU(1.0), TypeError, "num_parameters: got float; expected an int or a shape"),
    "bool": (lambda: DReLU(True), TypeError, "num_parameters: got bool; expected an int or a shape"),
    "string_in_shape": (lambda: DReLU(("a",)), ValueError, "num_parameters: got .*; expected a positive int"),
    "integer_dtype": (lambda: DReLU(dtype=torch.int64), (TypeError, RuntimeError), "dtype|floating point"),
    "save": (lambda: DReLU(save="both"), ValueError, "save: got 'both'; expected \"output\" or \"mask\""),
    "save_of_SReLU": (lambda: SReLU(1.0, save="both"), ValueError, "save: got 'both'"),
    "cap_of_SReLU": (lambda: SReLU(torch.ones(2).long()), TypeError, "cap: got dtype torch.int64; expected float32"),
    "granularity": (
        lambda: LazyDReLU("pixel"), ValueError, "granularity: got 'pixel'; expected \"layer\", \"channel\" or"
    ),
    "lazy_channel_dim": (
        lambda: LazyDReLU("channel", dim=3)(torch.ones(2, 3)), ValueError, r"dim: got 3 for x of shape \(2, 3\)"
    ),
    "lazy_neuron_of_a_vector": (
        lambda: LazyDReLU("neuron")(torch.ones(3)), ValueError, r"x: got shape \(3,\); neuron caps need a batch"
    ),
    "lazy_integer": (lambda: LazyDReLU()(torch.ones(2).long()), TypeError, "x: got dtype torch.int64"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_argument(name: str) -> None:
    make, error, message = BAD_ARGUMENTS[name]
    with pytest.raises(error, match=message):
        make()


def modules() -> dict[str, Callable[[], nn.Module]]:
    return {
        "SReLU": lambda: SReLU(0.7),
        "SReLU_channel": lambda: SReLU(torch.tensor([0.3, 0.5, 0.7])),
        "DReLU": lambda: DReLU(init=0.7),
        "DReLU_channel": lambda: DReLU(3, init=0.7, save="mask"),
        "DReLU_last": lambda: DReLU(5, init=0.7, dim=-1),
        "DReLU_neuron": lambda: DReLU((3, 5), init=0.7),
    }


by_module = pytest.mark.parametrize("name", modules())
X = torch.linspace(-1, 2, 60).view(4, 3, 5)


@by_module
def test_forward(name: str) -> None:
    module = modules()[name]()
    oracle.assert_same_bits(module(X), oracle.forward(X, module.cap.detach(), module.dim))


@by_module
@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
def test_in_place(name: str, inplace: bool) -> None:
    module = modules()[name]()
    module.inplace = inplace
    x = X.clone()
    y = module(x)
    assert (y is x) == inplace
    oracle.assert_same_bits(y, oracle.forward(X, module.cap.detach(), module.dim))


def change(module: nn.Module) -> None:
    with torch.no_grad():
        module.cap.add_(torch.rand(module.cap.shape))


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch_save": lambda module: _saved_and_loaded(module, weights_only=False),
}


def _saved_and_loaded(value: Any, weights_only: bool) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


@by_module
@pytest.mark.parametrize("how", COPIES)
def test_copy(name: str, how: str) -> None:
    module = modules()[name]()
    change(module)
    baseline = COPIES[how](module)
    assert (type(baseline), repr(baseline)) == (type(module), repr(module))
    oracle.assert_same_bits(baseline(X), module(X))
    before = baseline.cap.clone()
    change(module)
    assert torch.equal(baseline.cap, before)


@by_module
def test_state_dict_round_trip(name: str) -> None:
    module, baseline = modules()[name](), modules()[name]()
    change(module)
    state = _saved_and_loaded(module.state_dict(), weights_only=True)
    assert list(state) == ["cap"]
    assert str(baseline.load_state_dict(state)) == "<All keys matched successfully>"
    oracle.assert_same_bits(baseline.cap.detach(), module.cap.detach())


def test_state_dict_of_another_shape_is_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for cap"):
        DReLU(3).load_state_dict(DReLU(4).state_dict())


def test_reset_parameters() -> None:
    module = DReLU(3, init=0.5)
    change(module)
    module.reset_parameters()
    assert module.cap.tolist() == [0.5] * 3
    assert module.cap.requires_grad and module.cap.is_leaf


@by_module
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_to_dtype(name: str, dtype: torch.dtype) -> None:
    module = modules()[name]().to(dtype)
    assert module.cap.dtype == dtype
    for x_dtype in DTYPES:
        x = X.to(x_dtype)
        oracle.assert_same_bits(module(x), oracle.forward(x, module.cap.detach(), module.dim))


@by_module
def test_to_meta_and_back(name: str) -> None:
    module = modules()[name]().to("meta")
    assert module(X.to("meta")).shape == X.shape
    assert module.to_empty(device="cpu").cap.device.type == "cpu"


def test_built_on_meta() -> None:
    with torch.device("meta"):
        modules_on_meta = [DReLU(), DReLU((3, 5)), SReLU(1.0), DReLU(3, device="meta")]
    for module in [*modules_on_meta, DReLU(3, device="meta", dtype=torch.bfloat16)]:
        assert module.cap.is_meta
        assert module(X.to("meta")).is_meta
    module = DReLU(3, init=0.5, device="meta", dtype=torch.bfloat16).to_empty(device="cpu")
    module.reset_parameters()
    assert (module.cap.dtype, module.cap.tolist()) == (torch.bfloat16, [0.5] * 3)


LAZY_SHAPES = {"layer": (1,), "channel": (3,), "neuron": (3, 5)}


@pytest.mark.parametrize("dtype", [None, torch.float64], ids=["", "float64"])
@pytest.mark.parametrize("granularity", LAZY_SHAPES)
def test_lazy_becomes_DReLU(granularity: str, dtype: torch.dtype | None) -> None:  # noqa: N802
    module = LazyDReLU(granularity, init=0.5, save="mask", dtype=dtype)
    assert isinstance(module.cap, UninitializedParameter)
    y = module(X)
    assert type(module) is DReLU
    assert type(module.cap) is nn.Parameter
    assert (module.cap.shape, module.cap.dtype) == (LAZY_SHAPES[granularity], dtype or torch.float32)
    assert torch.equal(module.cap, torch.full(LAZY_SHAPES[granularity], 0.5, dtype=dtype))
    oracle.assert_same_bits(y, oracle.forward(X, module.cap.detach()))
    assert module.save == "mask"


def test_lazy_on_another_dim_and_before_an_optimizer() -> None:
    model = nn.Sequential(nn.Linear(5, 7), LazyDReLU("channel", init=0.5, dim=-1))
    model(X)
    assert model[1].cap.shape == (7,)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).sum().backward()
    optimizer.step()
    assert (model[1].cap != 0.5).any()


def test_lazy_state() -> None:
    module = LazyDReLU("channel", init=0.5)
    module.reset_parameters()
    for baseline in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert isinstance(baseline.cap, UninitializedParameter)
        baseline(X)
        assert baseline.cap.shape == (3,)
    loaded = LazyDReLU("channel")
    loaded.load_state_dict(DReLU(3, init=0.25).state_dict())
    assert loaded.cap.tolist() == [0.25] * 3
    loaded(X)
    assert type(loaded) is DReLU
    assert loaded.cap.tolist() == [0.25] * 3


def test_lazy_on_meta() -> None:
    module = LazyDReLU("channel", device="meta")
    module(X.to("meta"))
    assert module.cap.is_meta and module.cap.shape == (3,)


@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize("num_parameters", [1, 6, (6,)], ids=str)
def test_training_moves_the_cap(num_parameters: int | tuple[int, ...], save: str) -> None:
    model = nn.Sequential(nn.Linear(5, 6), DReLU(num_parameters, init=0.3, save=save), nn.Linear(6, 2))
    caps = [module.cap for module in model if isinstance(module, DReLU)]
    weights = [p for p in model.parameters() if not any(p is cap for cap in caps)]
    optimizer = torch.optim.Adam([{"params": weights, "lr": 1e-3}, {"params": caps, "lr": 1e-2}])
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(X.view(12, 5)) - 1).square().mean() + dreluop.cap_penalty(model, 1e-3)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all((cap != 0.3).all() for cap in caps)


def test_penalty_alone_shrinks_the_cap() -> None:
    module = DReLU(3, init=2.0)
    penalty = module.penalty(0.5)
    assert penalty.item() == 6
    penalty.backward()
    assert module.cap.grad.tolist() == [2] * 3


def test_autocast() -> None:
    model = nn.Sequential(nn.Linear(5, 6), DReLU(6, init=0.3, dim=-1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(X)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert model[1].cap.grad.dtype == torch.float32


def test_cap_may_become_zero_or_negative() -> None:
    module = DReLU(3)
    with torch.no_grad():
        module.cap.copy_(torch.tensor([0.0, -1.0, math.inf]))
    y = module(X)
    assert not y[:, :2].any()
    assert torch.equal(y[:, 2], X[:, 2].relu())


@pytest.mark.parametrize("module", [DReLU, LazyDReLU], ids=lambda m: m.__name__)
@pytest.mark.parametrize(
    ("init", "error"),
    [(0, ValueError), (-1.0, ValueError), (math.nan, ValueError), (-math.inf, ValueError), ("1", TypeError)],
    ids=str,
)
def test_bad_initial_cap(module: Any, init: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^init: got "):
        module(init=init)
