"""Parameter groups, the penalty as weight decay, and caps kept above a minimum."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import dreluop
from dreluop import DReLU, LazyDReLU, SReLU
from dreluop.surgery import freeze_caps

X = torch.linspace(-2, 2, 60, dtype=torch.float64).view(12, 5)


def network(init: float = 0.3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(5, 6), DReLU(6, init), nn.Linear(6, 4), DReLU(init=2 * init), nn.Linear(4, 2)
    ).double()


def caps_of(model: nn.Module) -> list[nn.Parameter]:
    return [module.cap for module in model.modules() if isinstance(module, DReLU)]


def same(got: list[Any], want: list[Any]) -> bool:
    return [*map(id, got)] == [*map(id, want)]


def test_groups() -> None:
    model = network()
    weights, caps = dreluop.param_groups(model, 1e-3, 1e-2, weight_decay=0.1)
    assert (weights.pop("name"), caps.pop("name")) == ("weights", "caps")
    assert same(weights.pop("params"), [p for layer in (model[0], model[2], model[4]) for p in layer.parameters()])
    assert same(caps.pop("params"), caps_of(model))
    assert (weights, caps) == ({"lr": 1e-3, "weight_decay": 0.1}, {"lr": 1e-2, "weight_decay": 0.0})


def test_balancer_is_the_weight_decay_of_the_caps_only() -> None:
    weights, caps = dreluop.param_groups(network(), 1e-3, balancer=0.25)
    assert (weights["weight_decay"], caps["weight_decay"]) == (0.0, 0.5)
    assert weights["lr"] == caps["lr"] == 1e-3


def test_tensor_rates_are_not_shared() -> None:
    lr = torch.tensor(0.1)
    weights, caps = dreluop.param_groups(network(), lr)
    assert weights["lr"] is lr and caps["lr"] is not lr and caps["lr"] == lr


def test_a_rate_that_is_trained_too_is_a_leaf_in_both_groups() -> None:
    lr = torch.tensor(0.1, requires_grad=True)
    weights, caps = dreluop.param_groups(network(), lr)
    assert weights["lr"] is caps["lr"] is lr


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_tensor_rates_of_every_float_dtype(dtype: torch.dtype) -> None:
    _, caps = dreluop.param_groups(network(), 0.5, torch.tensor([0.25], dtype=dtype))
    assert caps["lr"].dtype == dtype and caps["lr"].tolist() == [0.25]


def test_capturable_rates_train() -> None:
    models = network(), network()
    for model, lr in zip(models, (torch.tensor(0.01), 0.01), strict=True):
        optimizer = torch.optim.Adam(dreluop.param_groups(model, lr), foreach=False)
        model(X).sum().backward()
        optimizer.step()
    assert largest_difference(*([p.detach() for p in model.parameters()] for model in models)) < 1e-8
    assert not torch.equal(models[0][0].weight, network()[0].weight)


def test_shared_caps_come_once_and_frozen_ones_too() -> None:
    shared = DReLU()
    model = nn.Sequential(nn.Linear(5, 5), shared, shared, DReLU(), SReLU(1.0))
    model[3].cap = shared.cap
    freeze_caps(model)
    weights, caps = dreluop.param_groups(model, 1e-3)
    assert same(caps["params"], [shared.cap])
    assert same(weights["params"], [*model[0].parameters()])


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": torch.compile,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "DataParallel": nn.DataParallel,
}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_models(name: str) -> None:
    model = network()
    groups = dreluop.param_groups(model, 1e-3)
    wrapped = dreluop.param_groups(WRAPPERS[name](model), 1e-3)
    for got, want in zip(wrapped, groups, strict=True):
        assert same(got["params"], want["params"])


@pytest.mark.usefixtures("process_group")
def test_fully_sharded() -> None:
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415 (takes seconds)
    from torch.distributed.tensor import DTensor  # noqa: PLC0415

    model = network()
    fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    weights, caps = dreluop.param_groups(model, 1e-3)
    assert (len(weights["params"]), len(caps["params"])) == (6, 2)
    assert all(isinstance(cap, DTensor) for cap in caps["params"])
    with torch.no_grad():
        caps["params"][0].fill_(-1.0)
    dreluop.project_caps(model, 0.5)
    assert caps["params"][0].full_tensor().tolist() == [0.5] * 6


def parametrized() -> nn.Module:
    model = network()
    parametrize.register_parametrization(model[1], "cap", nn.Softplus())
    return model


BAD_GROUPS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no_model": (lambda: dreluop.param_groups([], 0.1), TypeError, "model: got list; expected a torch.nn.Module"),
    "no_caps": (lambda: dreluop.param_groups(nn.Linear(2, 2), 0.1), ValueError, "model: got a Linear without"),
    "lazy": (
        lambda: dreluop.param_groups(nn.Sequential(LazyDReLU()), 0.1), ValueError,
        "model: its LazyDReLU '0' has no shape yet; run the model once before",
    ),
    "parametrized": (
        lambda: dreluop.param_groups(parametrized(), 0.1), ValueError,
        "model: the cap of '1' is none of its parameters but made of one",
    ),
    "lr": (lambda: dreluop.param_groups(network(), -0.1), ValueError, "lr: got -0.1; expected a finite number"),
    "lr_type": (lambda: dreluop.param_groups(network(), "0.1"), TypeError, "lr: got str; expected a number"),
    "lr_shape": (
        lambda: dreluop.param_groups(network(), torch.ones(2)), ValueError,
        r"lr: got a tensor of shape \(2,\); expected one element",
    ),
    **{
        f"{name} {value}": (
            # As a lambda's default, or all would be the last one.
            lambda name=name, value=value: dreluop.param_groups(
                network(), **{"lr": 0.1, name: torch.tensor(value)}
            ), ValueError, rf"{name}: got {value}; expected a finite number >= 0",
        )
        for name in ("lr", "cap_lr") for value in (math.nan, math.inf, -0.5)
    },
    **{
        f"lr {value.dtype}": (
            lambda value=value: dreluop.param_groups(network(), value), TypeError,
            f"lr: got a tensor of {value.dtype}; expected a floating-point dtype",
        )
        for value in (torch.tensor(1), torch.tensor(True), torch.tensor(0.1 + 0j))
    },
    "lr on meta": (
        lambda: dreluop.param_groups(network(), torch.tensor(0.1, device="meta")), ValueError,
        "lr: got a tensor on the meta device, where it has no value",
    ),
    "weight_decay tensor": (
        lambda: dreluop.param_groups(network(), 0.1, weight_decay=torch.ones(2)), TypeError,
        r"weight_decay: got Tensor of shape \(2,\) and torch.float32 on cpu; expected a number",
    ),
    "cap_lr": (
        lambda: dreluop.param_groups(network(), 0.1, math.nan), ValueError, "cap_lr: got nan; expected a finite"
    ),
    "balancer": (
        lambda: dreluop.param_groups(network(), 0.1, balancer=-1), ValueError, "balancer: got -1; expected a finite"
    ),
    "weight_decay": (
        lambda: dreluop.param_groups(network(), 0.1, weight_decay=math.inf), ValueError, "weight_decay: got inf"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_GROUPS)
def test_bad_groups(name: str) -> None:
    make, error, message = BAD_GROUPS[name]
    with pytest.raises(error, match=message):
        make()


BALANCER = 0.05
MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def trained(make: MakeOptimizer, penalty_in_loss: bool, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """All parameters after twenty steps."""
    model = network().to(dtype)
    balancer = None if penalty_in_loss else BALANCER
    optimizer = make(dreluop.param_groups(model, 1e-2, 3e-2, balancer, weight_decay=1e-3))
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(X.to(dtype)) - 1).square().mean()
        if penalty_in_loss:
            loss = loss + dreluop.cap_penalty(model, BALANCER)
        loss.backward()
        optimizer.step()
    assert all((before != now).all() for before, now in zip(caps_of(network().to(dtype)), caps_of(model), strict=True))
    return [parameter.detach() for parameter in model.parameters()]


def largest_difference(one: list[Tensor], other: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


ADDED_TO_THE_GRADIENT: dict[str, MakeOptimizer] = {
    "SGD": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "SGD_nesterov": lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
    "Adam": torch.optim.Adam,
    "Adam_amsgrad": lambda groups: torch.optim.Adam(groups, amsgrad=True),
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "RMSprop": torch.optim.RMSprop,
    "Adagrad": torch.optim.Adagrad,
}
DECOUPLED: dict[str, MakeOptimizer] = {
    "AdamW": torch.optim.AdamW,
    "Adam": lambda groups: torch.optim.Adam(groups, decoupled_weight_decay=True),
}


@pytest.mark.parametrize("name", ADDED_TO_THE_GRADIENT)
def test_weight_decay_is_the_penalty(name: str) -> None:
    make = ADDED_TO_THE_GRADIENT[name]
    assert largest_difference(trained(make, True), trained(make, False)) < 1e-12


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_weight_decay_is_the_penalty_in_float32(name: str) -> None:
    make = ADDED_TO_THE_GRADIENT[name]
    results = (trained(make, penalty_in_loss, torch.float32) for penalty_in_loss in (True, False))
    assert largest_difference(*results) < 1e-5


@pytest.mark.parametrize("name", DECOUPLED)
def test_decoupled_weight_decay_is_not_the_penalty(name: str) -> None:
    make = DECOUPLED[name]
    # Adam takes steps of about the learning rate, AdamW's decay is a hundredth of that here.
    assert largest_difference(trained(make, True), trained(make, False)) > 0.1


def overshot(after_step: Callable[[torch.optim.Optimizer, DReLU], Any]) -> Tensor:
    """Caps that the penalty pulled for a hundred steps of Adam, none of which the loss holds."""
    layer = DReLU(3, init=0.05)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    after_step(optimizer, layer)
    seen = []
    for _ in range(100):
        optimizer.zero_grad()
        dreluop.cap_penalty(layer, 1.0).backward()
        optimizer.step()
        seen.append(layer.cap.detach().clone())
    return torch.stack(seen)


def test_adam_overshoots_below_zero_and_projected_caps_do_not() -> None:
    assert overshot(lambda optimizer, layer: None).min() < -1e-3
    caps = overshot(lambda optimizer, layer: dreluop.project_caps_after_step(optimizer, layer, 0.01))
    assert caps.min() == torch.tensor(0.01)
    assert (caps == torch.tensor(0.01)).any(1).sum() > 5
    caps = overshot(dreluop.project_caps_after_step)
    assert caps.min() == torch.tensor(1e-3)


def test_a_cap_at_zero_never_learns_and_one_above_does() -> None:
    for minimum, learns in ((0.0, False), (1e-3, True)):
        layer = DReLU(3, init=0.05)
        with torch.no_grad():
            layer.cap.fill_(-0.1)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        dreluop.project_caps(layer, minimum)
        assert torch.equal(layer.cap.detach(), torch.full((3,), minimum))
        for _ in range(3):
            optimizer.zero_grad()
            ((layer(torch.ones(2, 3)) - 1).square().sum() + dreluop.cap_penalty(layer, 1e-3)).backward()
            optimizer.step()
        assert bool((layer.cap > 0.1).all()) == learns
        assert bool((layer.cap == 0).all()) != learns


def test_projection_leaves_frozen_caps_and_nan_and_ends() -> None:
    model = nn.Sequential(DReLU(3), DReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with dreluop.project_caps_after_step(optimizer, model):
        with torch.no_grad():
            model[0].cap.copy_(torch.tensor([-1.0, math.nan, 2.0]))
            model[1].cap.fill_(-1.0)
        freeze_caps(model, select="1")
        optimizer.step()
        assert torch.equal(model[0].cap.nan_to_num(7.0), torch.tensor([1e-3, 7.0, 2.0]))
        assert model[1].cap.item() == -1
        freeze_caps(model, False)
        optimizer.step()
        assert model[1].cap.item() == torch.tensor(1e-3)
    with torch.no_grad():
        model[1].cap.fill_(-1.0)
    optimizer.step()
    assert model[1].cap.item() == -1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_projection_rounds_the_minimum_as_the_dtype_does(dtype: torch.dtype) -> None:
    layer = DReLU(3, dtype=dtype)
    with torch.no_grad():
        layer.cap.fill_(-1.0)
    dreluop.project_caps([layer.cap])
    assert torch.equal(layer.cap.detach(), torch.full((3,), 1e-3, dtype=dtype))


def test_before_surgery_the_optimizer_has_no_caps() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[1] = DReLU(6)
    with pytest.raises(ValueError, match="optimizer: got one without 1 of the 1 caps; make it of them too"):
        dreluop.project_caps_after_step(optimizer, model)
    freeze_caps(model)
    dreluop.project_caps_after_step(optimizer, model)


BAD_PROJECTIONS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "negative": (lambda: dreluop.project_caps(network(), -1.0), ValueError, "minimum: got -1.0; expected a finite"),
    "nan": (lambda: dreluop.project_caps(network(), math.nan), ValueError, "minimum: got nan; expected a finite"),
    "type": (lambda: dreluop.project_caps(network(), "0"), TypeError, "minimum: got str; expected a number"),
    "underflow": (
        lambda: dreluop.project_caps(network().half(), 1e-9), ValueError,
        r"minimum: got 1e-09; expected 0 or 6.10352e-05 to 65504, as caps\[0\] is torch.float16",
    ),
    "overflow": (lambda: dreluop.project_caps(network().half(), 1e9), ValueError, r"minimum: got 1000000000.0"),
    "no_caps": (lambda: dreluop.project_caps(nn.Linear(2, 2)), ValueError, "caps: got a Linear without any DReLU"),
    "lazy": (lambda: dreluop.project_caps(LazyDReLU()), ValueError, r"caps\[0\]: got the cap of a LazyDReLU without a"),
    "no_leaf": (lambda: dreluop.project_caps(parametrized()), ValueError, r"caps\[0\]: got what is no parameter"),
    "no_parameter": (lambda: dreluop.project_caps([torch.ones(3)]), ValueError, r"caps\[0\]: got what is no parameter"),
    "no_optimizer": (
        lambda: dreluop.project_caps_after_step(network(), network()), TypeError,
        "optimizer: got Sequential; expected a torch.optim.Optimizer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PROJECTIONS)
def test_bad_projection(name: str) -> None:
    make, error, message = BAD_PROJECTIONS[name]
    with pytest.raises(error, match=message):
        make()


def test_refused_projection_changes_nothing() -> None:
    model = nn.Sequential(DReLU(3), DReLU(3, dtype=torch.float16))
    with torch.no_grad():
        model[0].cap.fill_(-1.0)
    before = copy.deepcopy(model[0].cap)
    with pytest.raises(ValueError, match=r"as caps\[1\] is torch.float16"):
        dreluop.project_caps(model, 1e-6)
    assert torch.equal(model[0].cap, before)
