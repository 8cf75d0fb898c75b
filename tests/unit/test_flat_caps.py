"""All caps in one parameter: the network trains, saves, copies and is operated on as before."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import dreluop
from dreluop import BatchNormDReLU1d, DReLU, LazyDReLU, adaptive, surgery
from dreluop.caps import flatten
from dreluop.faults import bit_flips

X = torch.linspace(-2, 2, 60, dtype=torch.float64).view(12, 5)


def network() -> nn.Sequential:
    """Caps of each kind, one of them shared."""
    torch.manual_seed(1)
    shared = DReLU(init=0.625)
    layers = [
        nn.Linear(5, 6),
        DReLU(6, 0.25),
        nn.Linear(6, 4),
        shared,
        nn.Linear(4, 4),
        shared,
        nn.Unflatten(1, (2, 2)),
    ]
    return nn.Sequential(*layers, DReLU((2, 2), 0.5), nn.Flatten(), BatchNormDReLU1d(4, init=1.5)).double().eval()


def pair() -> tuple[nn.Sequential, nn.Sequential]:
    model = network()
    flat = copy.deepcopy(model)
    flatten(flat)
    return model, flat


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def test_one_parameter_holds_all_caps():
    model, flat = pair()
    assert [name for name, _ in flat.named_parameters() if "cap" in name] == ["flat_caps"]
    assert flat.flat_caps.tolist() == [0.25] * 6 + [0.625] + [0.5] * 4 + [1.5] * 4
    assert isinstance(flat.flat_caps, nn.Parameter) and flat[3] is flat[5]
    assert [flat[i].cap.shape for i in (1, 3, 7, 9)] == [(6,), (1,), (2, 2), (4,)]
    assert equal_states(model, flat)
    assert repr(flat).replace("Flat", "") == repr(model).replace("Flat", "")


@pytest.mark.parametrize("penalty", ["none", "loss", "optimizer"])
def test_it_trains_as_before(penalty: str):
    models = pair()
    for model in models:
        model.train()
        balancer = 0.05 if penalty == "optimizer" else None
        groups = dreluop.param_groups(model, 0.05, cap_lr=0.2, balancer=balancer)
        assert len(groups[1]["params"]) == (1 if model is models[1] else 4)
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        dreluop.project_caps_after_step(optimizer, model, minimum=0.2)
        for _ in range(6):
            optimizer.zero_grad()
            loss = (model(X) - 1).square().sum()
            loss = loss + dreluop.cap_penalty(model, 0.05) if penalty == "loss" else loss
            loss.backward()
            optimizer.step()
    one, other = (model.state_dict() for model in models)
    assert all(torch.allclose(one[key], other[key], rtol=1e-9, atol=1e-12) for key in one)
    assert not torch.equal(one["1.cap"], network().state_dict()["1.cap"]), "no cap moved"
    assert one["1.cap"].min() >= 0.2


def test_gradients_that_were_there_stay():
    model, flat = network(), network()
    for one in (model, flat):
        one[:2](X).sum().backward()
    flatten(flat)
    assert torch.equal(flat.flat_caps.grad[:6], model[1].cap.grad)
    assert not flat.flat_caps.grad[6:].any()


def test_penalty_and_its_gradient():
    model, flat = pair()
    values = [dreluop.cap_penalty(one, 0.5) for one in (model, flat)]
    torch.testing.assert_close(*values)
    values[1].backward()
    torch.testing.assert_close(flat.flat_caps.grad, flat.flat_caps.detach())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_states_go_both_ways(assign: bool, wrapped: bool):
    model, flat = pair()
    one, other = (nn.ModuleDict({"net": part}) if wrapped else part for part in (model, flat))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    flat(X)
    other.load_state_dict(one.state_dict(), assign=assign)
    assert equal_states(one, other) and flat[1].cap[0] == 0.375
    flat(X).sum().backward()
    assert flat.flat_caps.grad is not None
    assert torch.equal(flat(X), model(X))
    with torch.no_grad():
        flat.flat_caps.fill_(2.0)
    one.load_state_dict(other.state_dict(), assign=assign)
    assert model[7].cap.tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_a_state_without_a_cap_is_refused():
    _, flat = pair()
    state = flat.state_dict()
    del state["1.cap"]
    with pytest.raises(RuntimeError, match=r"Missing key.*1\.cap"):
        flat.load_state_dict(state)
    assert flat.load_state_dict(state, strict=False).missing_keys == ["1.cap"]
    state["1.cap"] = torch.ones(7)
    with pytest.raises(RuntimeError, match=r"size mismatch for 1\.cap"):
        flat.load_state_dict(state)


def by_torch_save(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), by_torch_save])
def test_copies_have_caps_of_their_own(copied: Callable[[nn.Module], Any]):
    _, flat = pair()
    # With views in a graph, which cannot be copied.
    flat(X).sum().backward()
    other = copied(flat)
    assert equal_states(flat, other) and torch.equal(other(X), flat(X))
    with torch.no_grad():
        other.flat_caps.fill_(0.1)
    assert other[1].cap.max() == 0.1 and flat[1].cap[0] == 0.25
    other(X).sum().backward()
    assert other.flat_caps.grad is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda flat: flat.flat_caps.data.mul_(2),
        lambda flat: setattr(flat.flat_caps, "data", flat.flat_caps.data * 2),
        lambda flat: flat.load_state_dict({k: v * 2 if "cap" in k else v for k, v in flat.state_dict().items()}),
        lambda flat: surgery.set_caps(flat, {name: 2 * flat[int(name)].cap.detach() for name in ("1", "3", "7", "9")}),
        lambda flat: setattr(flat, "flat_caps", nn.Parameter(flat.flat_caps.detach() * 2)),
    ],
    ids=["data in place", "data", "load", "set_caps", "parameter"],
)
def test_a_change_reaches_every_layer(change: Callable[[Any], Any]):
    _, flat = pair()
    flat(X)
    change(flat)
    want = network()
    with torch.no_grad():
        for module in want.modules():
            if hasattr(module, "cap"):
                module.cap.mul_(2)
    assert torch.equal(flat(X), want(X))
    assert flat[1].cap[0] == 0.5


def test_another_parameter_in_the_same_memory_gets_the_gradient():
    _, flat = pair()
    flat(X)
    flat.flat_caps = nn.Parameter(flat.flat_caps.detach())
    flat(X).sum().backward()
    assert flat.flat_caps.grad is not None


def test_modes_and_dtypes_follow_each_other():
    _, flat = pair()
    flat(X)
    with torch.inference_mode():
        assert not flat(X).requires_grad
    with torch.no_grad():
        assert not flat(X).requires_grad
    flat(X).sum().backward()
    assert flat.flat_caps.grad is not None
    flat.zero_grad()
    flat.float()
    assert flat[1].cap.dtype == torch.float32
    flat(X.float()).sum().backward()
    assert flat.flat_caps.grad.dtype == torch.float32


def test_a_change_between_forward_and_backward_is_noticed():
    _, flat = pair()
    y = flat(X)
    with torch.no_grad():
        flat.flat_caps.mul_(2)
    with pytest.raises(RuntimeError, match="has been modified inplace"):
        y.sum().backward()


def test_torch_func_puts_other_caps_in():
    model, flat = pair()

    def gradients(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
        values = {name: p.detach() for name, p in net.named_parameters()}
        return torch.func.grad(lambda given: torch.func.functional_call(net, given, (x,)).square().sum())(values)

    of_parts, of_flat = gradients(model, X), gradients(flat, X)
    joined = torch.cat([of_parts[f"{i}.cap"].flatten() for i in (1, 3, 7, 9)])
    torch.testing.assert_close(of_flat["flat_caps"], joined)
    assert joined.any()
    found = torch.func.vmap(lambda x: gradients(flat, x[None])["flat_caps"])(X)
    torch.testing.assert_close(found.sum(0), joined)
    flat(X).sum().backward()


def test_checkpointing_and_second_derivatives():
    model, flat = pair()
    for one in (model, flat):
        y = checkpoint(one, X, use_reentrant=False).square().sum()
        weights = [p for name, p in one.named_parameters() if "cap" not in name]
        grads = torch.autograd.grad(y, weights, create_graph=True)
        sum(grad.square().sum() for grad in grads).backward()
    torch.testing.assert_close(flat.flat_caps.grad[:6], model[1].cap.grad)
    assert model[1].cap.grad.any()


@pytest.mark.slow
def test_compiled_it_is_the_same():
    model, flat = pair()
    for one in (model, torch.compile(flat, backend="aot_eager", fullgraph=True)):
        one(X).square().sum().backward()
    torch.testing.assert_close(flat.flat_caps.grad[:6], model[1].cap.grad)
    torch.testing.assert_close(flat.flat_caps.grad[7:11], model[7].cap.grad.flatten())


def test_data_parallel_over_one_process(process_group: None):
    model, flat = pair()
    wrapped = nn.parallel.DistributedDataParallel(flat)
    wrapped(X).square().sum().backward()
    model(X).square().sum().backward()
    torch.testing.assert_close(flat.flat_caps.grad[:6], model[1].cap.grad)


def test_caps_are_frozen_together():
    _, flat = pair()
    with pytest.raises(ValueError, match="'1' is in one parameter with those of other layers"):
        surgery.freeze_caps(flat, select="1")
    assert flat.flat_caps.requires_grad
    assert surgery.freeze_caps(flat) == ["1", "3", "7", "9"]
    assert not flat.flat_caps.requires_grad and not flat[1].cap.requires_grad
    surgery.freeze_caps(flat, False)
    assert flat[1].cap.requires_grad


def test_what_reads_and_writes_caps():
    # Without the batch norm, which calibration does not serve.
    model = network()[:-1]
    flat = copy.deepcopy(model)
    flatten(flat)
    assert surgery.calibrate_caps(flat, [X]) == surgery.calibrate_caps(model, [X])
    assert equal_states(model, flat)
    assert str(surgery.cap_summary(flat, [X])) == str(surgery.cap_summary(model, [X]))
    with torch.no_grad():
        flat.flat_caps[0] = -1.0
    dreluop.project_caps(flat, 0.125)
    assert flat[1].cap[0] == 0.125
    with bit_flips(flat, flips=3, where="caps", generator=torch.Generator().manual_seed(1)):
        assert not equal_states(model, flat)
    assert flat[1].cap[0] == 0.125


def test_without_dreluop_or_caps_nothing_is_left_of_it():
    model = network()[:-1]
    flat = copy.deepcopy(model)
    flatten(flat)
    plain = surgery.to_torch(flat)
    assert torch.equal(plain(X), flat(X)) and equal_states(plain, model)
    assert sorted(name for name, _ in plain.named_parameters()) == sorted(name for name, _ in model.named_parameters())
    view = adaptive.remove_caps(flat)
    torch.testing.assert_close(view(X), adaptive.remove_caps(model)(X))
    assert not [name for name, _ in view.named_parameters() if "cap" in name]
    assert flat.flat_caps.numel() == 11


def after(change: Callable[[Any], Any]) -> Callable[[nn.Sequential], nn.Sequential]:
    def changed(model: nn.Sequential) -> nn.Sequential:
        change(model)
        return model

    return changed


REFUSED: dict[str, tuple[Callable[[nn.Sequential], Any], type[Exception], str]] = {
    "no module": (lambda _: 3, TypeError, "model: got int"),
    "no caps": (lambda _: nn.Linear(2, 2), ValueError, "without any DReLU"),
    "lazy": (lambda _: nn.Sequential(LazyDReLU()), ValueError, "has no shape yet"),
    "twice": (after(flatten), ValueError, "where the cap of '1' is.*flattened once"),
    "a part": (after(lambda model: flatten(model[:2])), ValueError, "where the cap of '1' is"),
    "name taken": (after(lambda model: setattr(model, "flat_caps", 1)), ValueError, "got one with flat_caps"),
    "dtype": (after(lambda model: model[7].float()), ValueError, "'7' has dtype torch.float32; expected torch.float64"),
    "device": (after(lambda model: model[7].to("meta")), ValueError, "'7' has device meta; expected cpu"),
    "frozen": (after(lambda model: model[7].requires_grad_(False)), ValueError, "'7' has requires_grad False"),
    "hook": (
        after(lambda model: model[1].cap.register_hook(torch.clone)),
        ValueError,
        "'1' has hooks of its own",
    ),
    "parametrized": (
        after(lambda model: parametrize.register_parametrization(model[1], "cap", nn.Identity())),
        ValueError,
        "'1' is made of other parameters",
    ),
    "compiled": (lambda model: torch.compile(model, backend="eager"), ValueError, "before it is compiled or wrapped"),
    "DataParallel": (nn.DataParallel, ValueError, "before it is compiled or wrapped"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str):
    change, error, words = REFUSED[name]
    model = change(network())
    before = [key for key, _ in model.named_parameters()] if isinstance(model, nn.Module) else []
    with pytest.raises(error, match=words):
        flatten(model)
    assert before == ([key for key, _ in model.named_parameters()] if before else [])
