"""Checkpoints: of the float model into the operated one, and of what surgery makes."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm, weight_norm

from dreluop import DReLU, SReLU
from dreluop.surgery import insert_head, insert_stem, load_float_state_dict, replace_activations
from tests.surgery.models import ResidualBlock


def float_model() -> nn.Sequential:
    torch.manual_seed(3)
    block = ResidualBlock(4, inside=3, inplace=True)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), block, nn.Flatten(), nn.Linear(4 * 25, 6))


def operated() -> nn.Sequential:
    torch.manual_seed(4)
    model = float_model()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    replace_activations(model, init=0.5)
    return model


def operated_with_new_layers() -> nn.Sequential:
    model = operated()
    insert_head(model, init=0.5)
    insert_stem(model, init=0.5)
    return model


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def same_state(model: nn.Module, state: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == state.keys() and all(torch.equal(now[key], state[key]) for key in state)


def test_a_float_checkpoint_loads_but_for_the_caps() -> None:
    model, source = operated(), float_model()
    state = source.state_dict()
    caps = {key: tensor for key, tensor in snapshot(model).items() if key.endswith("cap")}
    report = load_float_state_dict(model, state)
    assert report.caps == tuple(caps) and len(caps) == 4
    assert set(report.loaded) == set(state) and not report.new_layers
    assert same_state(model, {**state, **caps})
    assert str(report) == (f"{len(state)} keys loaded\n4 not in the state, values kept: caps {', '.join(caps)}")


def test_new_layers_must_be_asked_for() -> None:
    model, state = operated_with_new_layers(), float_model().state_dict()
    before = snapshot(model)
    made = "'0.stem.weight', '0.stem.bias', '5.head.weight', '5.head.bias'"
    with pytest.raises(
        ValueError, match=rf"state: it lacks {made} \(insert_head and insert_stem made some: new_layers"
    ):
        load_float_state_dict(model, state)
    assert same_state(model, before)
    report = load_float_state_dict(model, state, new_layers=True)
    assert report.new_layers == ("0.stem.weight", "0.stem.bias", "5.head.weight", "5.head.bias")
    assert len(report.caps) == 6
    assert same_state(model, {key: state.get(key, before[key]) for key in before})


def test_some_caps_in_the_state() -> None:
    model, state = operated(), operated().state_dict()
    missing = [key for key in state if key.endswith("cap")][1:]
    for key in missing:
        del state[key]
    assert load_float_state_dict(model, state).caps == tuple(missing)
    assert load_float_state_dict(model, operated().state_dict()).caps == ()


def test_shared_modules_and_fixed_caps() -> None:
    shared = DReLU(4)
    model = nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared, SReLU(1.0))
    state = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.ReLU()).state_dict()
    assert load_float_state_dict(model, state).caps == ("1.cap", "3.cap", "4.cap")
    assert torch.equal(model[2].weight, state["2.weight"])
    only = DReLU()
    assert load_float_state_dict(only, {}).caps == ("cap",)


def test_a_checkpoint_from_before_batches_were_counted() -> None:
    # Batch norm counts them since version 2 of its state, and fills in what an older one lacks.
    model, state = operated(), float_model().state_dict()
    for key in [key for key in state if key.endswith("num_batches_tracked")]:
        del state[key]
    state._metadata.clear()  # type: ignore[attr-defined]
    assert len(load_float_state_dict(model, state).caps) == 4
    assert torch.equal(model[0].weight, state["0.weight"])


class Shifted(nn.Module):
    """Holds tensors that are no buffers, one of them with a gradient function."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.ones(4)
        self.made = [torch.ones(4, requires_grad=True) * 2]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift + self.made[0]


def pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.3)


UNCOPIED: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: weight_norm(nn.Linear(4, 4)),
    "spectral_norm": lambda: spectral_norm(nn.Linear(4, 4)),
    "prune": lambda: pruned(nn.Linear(4, 4)),
    "recurrent": lambda: weight_norm(nn.LSTM(4, 4), "weight_hh_l0"),
    "no_buffer": Shifted,
}


@pytest.mark.parametrize("name", UNCOPIED)
def test_modules_that_torch_refuses_to_copy(name: str) -> None:
    source, model = (nn.Sequential(UNCOPIED[name](), nn.Linear(4, 4)) for _ in range(2))
    model.insert(1, DReLU(4, init=0.3))
    source.insert(1, nn.ReLU())
    model[0](torch.randn(2, 4))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    before, state = snapshot(model), source.state_dict()
    with pytest.raises(ValueError, match=r"it lacks '2\.bias'"):
        load_float_state_dict(model, {key: value for key, value in state.items() if key != "2.bias"})
    assert same_state(model, before)
    assert load_float_state_dict(model, state).caps == ("1.cap",)
    assert same_state(model, {**state, "1.cap": torch.full((4,), 0.3)})


def test_a_model_that_cannot_be_copied() -> None:
    model = operated()
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"model: it cannot be copied: cannot pickle '_thread\.lock' object"):
        load_float_state_dict(model, float_model().state_dict())


def changed(**changes: Any) -> dict[str, Any]:
    state = {**float_model().state_dict(), **changes}
    return {key: value for key, value in state.items() if value is not None}


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "lacks": (lambda: changed(**{"0.bias": None}), ValueError, "it lacks '0.bias'; expected all keys of the model"),
    "has": (lambda: changed(other=torch.ones(2)), ValueError, "state: it has 'other', which the model has not"),
    "both": (
        lambda: changed(**{"0.bias": None, "other": torch.ones(2)}), ValueError, "it lacks '0.bias'; it has 'other'"
    ),
    "shape": (lambda: changed(**{"5.bias": torch.ones(7)}), ValueError, "state: .*size mismatch for 5.bias"),
    "no_tensor": (lambda: changed(**{"5.bias": 3}), ValueError, 'state: .*parameter named "5.bias"'),
    "nested": (lambda: {"model": float_model().state_dict()}, ValueError, "it has 'model', which the model has not"),
    "type": (lambda: [1], TypeError, "state: got list; expected a state_dict"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_state_loads_nothing(name: str) -> None:
    make, error, message = BAD[name]
    model = operated()
    before = snapshot(model)
    with pytest.raises(error, match=rf"(?s){message}"):
        load_float_state_dict(model, make())
    assert same_state(model, before)


def test_bad_models() -> None:
    with pytest.raises(ValueError, match="model: got a Sequential without any DReLU or SReLU"):
        load_float_state_dict(float_model(), float_model().state_dict())
    with pytest.raises(ValueError, match="model: got a compiled module"):
        load_float_state_dict(torch.compile(operated()), {})
    with pytest.raises(TypeError, match="new_layers: got int; expected a bool"):
        load_float_state_dict(operated(), {}, new_layers=1)


def saved_and_loaded(value: Any, **options: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **options)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch_save": lambda model: saved_and_loaded(model, weights_only=False),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_an_operated_model(how: str) -> None:
    model = operated_with_new_layers().eval()
    before, x = snapshot(model), torch.randn(2, 3, 7, 7)
    baseline = COPIES[how](model)
    assert same_state(baseline, before)
    assert [type(one).__name__ for one in baseline.modules()] == [type(one).__name__ for one in model.modules()]
    assert torch.equal(baseline(x), model(x))
    with torch.no_grad():
        for parameter in baseline.parameters():
            parameter.add_(1)
    assert same_state(model, before)


def test_a_state_dict_of_an_operated_model_loads_with_weights_only() -> None:
    model, baseline = operated_with_new_layers(), operated_with_new_layers()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.1, 1)
    state = saved_and_loaded(model.state_dict(), weights_only=True)
    assert str(baseline.load_state_dict(state)) == "<All keys matched successfully>"
    assert same_state(baseline, snapshot(model))
