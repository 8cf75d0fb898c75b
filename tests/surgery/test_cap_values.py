"""Caps that are made of another parameter, share memory, or have no value: set, or refused by name; never neither."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils as nn_utils
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from dreluop import DReLU, SReLU, cap_penalty, param_groups, project_caps
from dreluop.surgery import calibrate_caps, cap_summary, freeze_caps, load_float_state_dict, set_caps, to_torch

X = torch.linspace(0.5, 4.0, 24).view(8, 3)


class Softplus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(x)

    def right_inverse(self, y: Tensor) -> Tensor:
        return y + torch.log(-torch.expm1(-y))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x

    def right_inverse(self, y: Tensor) -> Tensor:
        return y / self.scale.detach()


class AtMostTen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(max=10)

    def right_inverse(self, y: Tensor) -> Tensor:
        return y


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0

    def right_inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError("no inverse")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Identity(), DReLU(3, init=80.0), nn.Identity(), DReLU(3, init=9.0))


def parametrized(*parts: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Its second DReLU, '3', is."""
    model = network().to(dtype)
    for part in parts:
        parametrize.register_parametrization(model[3], "cap", part)
    return model


def weight_norm() -> nn.Sequential:
    model = network()
    nn_utils.parametrizations.weight_norm(model[3], "cap")
    return model


SETTABLE: dict[str, Callable[[], nn.Sequential]] = {
    "softplus": lambda: parametrized(Softplus()),
    "two": lambda: parametrized(Softplus(), Scaled()),
    "weight_norm": weight_norm,
    "bounded": lambda: parametrized(AtMostTen()),
}


@pytest.mark.parametrize("name", SETTABLE)
def test_a_parametrized_cap_is_set_through_its_inverse(name: str) -> None:
    model = SETTABLE[name]()
    parameters, places = [*model.parameters()], [parameter.data_ptr() for parameter in model.parameters()]
    assert set_caps(model, 0.5) == ["1", "3"]
    for layer in (model[1], model[3]):
        torch.testing.assert_close(layer.cap.detach(), torch.full((3,), 0.5))
    torch.testing.assert_close(model(X), X.clamp(0, 0.5))
    set_caps(model, {"3": torch.tensor([1.0, 2.0, 3.0])})
    torch.testing.assert_close(model[3].cap.detach(), torch.tensor([1.0, 2.0, 3.0]))
    # An optimizer, or a captured graph, knows the parameters and their memory.
    assert [*map(id, model.parameters())] == [*map(id, parameters)]
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", SETTABLE)
def test_a_parametrized_cap_is_calibrated(name: str) -> None:
    model = SETTABLE[name]()
    rows = calibrate_caps(model, [X], 1.0, progress=False).layers
    for layer, row in zip((model[1], model[3]), rows, strict=True):
        torch.testing.assert_close(layer.cap.detach(), X.amax(0))
        assert (row.cap_min, row.cap_max) == (layer.cap.min().item(), layer.cap.max().item())
    model[3].reset_parameters()
    torch.testing.assert_close(model[3].cap.detach(), torch.full((3,), 9.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_an_inverse_may_round(dtype: torch.dtype) -> None:
    model = parametrized(Softplus(), dtype=dtype)
    set_caps(model, 0.3)
    torch.testing.assert_close(model[3].cap.detach().double(), torch.full((3,), 0.3).double(), rtol=0.03, atol=0)


def pruned() -> nn.Sequential:
    model = network()
    prune.l1_unstructured(model[3], "cap", 1)
    return model


def hooked(make: Callable[..., Any]) -> Callable[[], nn.Sequential]:
    def model() -> nn.Sequential:
        result = network()
        make(result[3], "cap")
        return result

    return model


HOOK = "model: the cap of '3' is none of its parameters but made of one, by a hook"
REFUSED: dict[str, tuple[Callable[[], nn.Sequential], str]] = {
    "pruned": (pruned, HOOK),
    "weight_norm by hooks": (hooked(nn_utils.weight_norm), HOOK),
    "spectral_norm by hooks": (hooked(nn_utils.spectral_norm), HOOK),
    "spectral_norm": (
        hooked(nn_utils.parametrizations.spectral_norm), r"model: the cap of '3' is 0\.5\d* after it was set to 1"
    ),
    "without inverse": (
        lambda: parametrized(nn.Softplus()),
        "model: the cap of '3' is parametrized by a Softplus without right_inverse, so it cannot be set",
    ),
    "inverse fails": (
        lambda: parametrized(Broken()), "'3' cannot be set, as right_inverse of its Broken failed: no inverse"
    ),
    "out of reach": (
        lambda: parametrized(AtMostTen()), r"model: the cap of '3' is 10 after it was set to 1\d"
    ),
    "on meta": (lambda: network().to("meta"), "model: the cap of '1' is on the meta device, where it has no value"),
}  # fmt: skip


def values(model: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in [*model.parameters(), *model.buffers()] if not tensor.is_meta]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_a_cap_that_cannot_be_set_is_refused_by_name_and_nothing_changes(name: str) -> None:
    make, message = REFUSED[name]
    model = make().eval()
    before, value = values(model), 12.0 if name == "out of reach" else 1.5
    for change in (
        lambda: set_caps(model, value),
        lambda: calibrate_caps(model, [X / X.max() * 1.25 * value], 1.0, progress=False),
    ):
        with pytest.raises(ValueError, match=message):
            change()
        assert [*map(torch.equal, values(model), before)] == [True] * len(before)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["pruned", "weight_norm by hooks", "spectral_norm by hooks"])
def test_what_a_hook_makes_is_refused_everywhere(name: str) -> None:
    model = REFUSED[name][0]()
    with pytest.raises(ValueError, match=HOOK):
        freeze_caps(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match=HOOK.replace(" of '3'", "")):
        model[3].reset_parameters()
    with pytest.raises(ValueError, match=r"caps\[1\]: got what is no parameter but made of one, the cap of '3'"):
        project_caps(model)
    with pytest.raises(ValueError, match="model: the cap of '3' is none of its parameters but made of one"):
        param_groups(model, 0.1)
    assert cap_summary(model).layers[1].caps == 3


@pytest.mark.parametrize("name", SETTABLE)
def test_freezing_a_parametrized_cap_stops_its_training(name: str) -> None:
    model = SETTABLE[name]()
    cap_penalty(model, 1.0).backward()
    before = values(model)
    assert freeze_caps(model) == ["1", "3"]
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert not model[3].cap.requires_grad
    assert freeze_caps(model, False, select="3") == ["3"]
    assert model[3].cap.requires_grad and not model[1].cap.requires_grad
    assert [*map(torch.equal, values(model), before)] == [True] * len(before)


def test_a_cap_that_cannot_be_trained_is_no_success() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach() + 0

    model = parametrized(Fixed())
    freeze_caps(model, select="1")
    with pytest.raises(ValueError, match="the cap of '3' is made by a parametrization, and still has no gradient"):
        freeze_caps(model, False)
    assert not model[1].cap.requires_grad


def test_parametrizations_with_one_original_are_shared_caps() -> None:
    model = parametrized(Softplus())
    parametrize.register_parametrization(model[1], "cap", Softplus())
    for _ in range(20):
        # The ids of two short-lived tensors may be equal: these layers share nothing.
        assert set_caps(model, {"1": 1.0, "3": 2.0}) == ["1", "3"]
    model[1].parametrizations["cap"].original = model[3].parametrizations["cap"].original
    with pytest.raises(ValueError, match="value of '3': got another than for '1', which shares its caps"):
        set_caps(model, {"1": 1.0, "3": 2.0})
    calibrate_caps(model, [X, 2 * X], 1.0, progress=False)
    torch.testing.assert_close(model[1].cap.detach(), 2 * X.amax(0))


def test_caps_in_the_memory_of_others_are_read_back() -> None:
    model = network()
    model[3].cap = nn.Parameter(model[1].cap.detach().view(3))
    with pytest.raises(ValueError, match=r"model: the cap of '1' is 2 after it was set to 1: .* the memory of another"):
        set_caps(model, {"1": 1.0, "3": 2.0})
    assert model[1].cap.tolist() == [80, 80, 80]
    set_caps(model, 3.0)
    assert model[3].cap.tolist() == [3, 3, 3]


def test_a_cached_parametrization_is_not_taken_for_a_set_one() -> None:
    model = parametrized(Scaled())
    with parametrize.cached():
        before = model[3].cap
        with pytest.raises(ValueError, match="model: the cap of '3' is 9 after it was set to 1"):
            set_caps(model, 1.0)
    assert torch.equal(model[3].cap, before)


def test_caps_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = network()
    set_caps(model, 2.0)
    assert (model[1].cap.tolist(), model[3].cap.tolist()) == ([2] * 3, [2] * 3)
    calibrate_caps(model, [X], 1.0, progress=False)
    assert torch.equal(model[1].cap, X.amax(0))
    freeze_caps(model)
    assert not model[1].cap.requires_grad
    freeze_caps(model, False)
    with pytest.raises(ValueError, match=r"caps\[0\]: got a cap made in inference mode"):
        project_caps(model, 10.0)
    ordinary = network()
    with torch.inference_mode():
        set_caps(ordinary, 2.0)
    assert not ordinary[1].cap.is_inference() and ordinary[1].cap.tolist() == [2] * 3


def test_a_cap_that_is_a_buffer_is_set() -> None:
    model = network()
    del model[3].cap
    model[3].register_buffer("cap", torch.ones(3))
    set_caps(model, 2.0)
    assert model[3].cap.tolist() == [2] * 3


def test_caps_on_meta() -> None:
    model = network().to("meta")
    assert freeze_caps(model, select="3") == ["3"]
    with pytest.raises(ValueError, match=r"caps\[0\]: got a cap on the meta device"):
        project_caps(model)
    with pytest.raises(ValueError, match="the cap of '1' is on the meta device"):
        cap_summary(model)
    float_model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with torch.device("meta"):
        operated = nn.Sequential(nn.Linear(3, 3), DReLU(3))
    with pytest.raises(ValueError, match=r"model: '0\.weight' is on the meta device, where nothing can be loaded"):
        load_float_state_dict(operated, float_model.state_dict())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "name", ["softplus", "weight_norm", "pruned", "weight_norm by hooks", "spectral_norm by hooks"]
)
def test_a_float_checkpoint_loads_beside_caps_that_are_made(name: str) -> None:
    made = SETTABLE[name]() if name in SETTABLE else REFUSED[name][0]()
    model = nn.Sequential(nn.Linear(3, 3), made)
    source = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Identity(), nn.ReLU(), nn.Identity(), nn.ReLU()))
    caps = {key for key in model.state_dict() if key.startswith("1.")}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if name == "spectral_norm by hooks":
        # Its own hook insists on its keys, all of which it names.
        caps |= {"1.3.cap"}
    report = load_float_state_dict(model, source.state_dict())
    assert set(report.caps) == caps
    assert torch.equal(model[0].weight, source[0].weight)
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before if key.startswith("1."))
    with pytest.raises(ValueError, match=r"it has '1\.3\.cap', which the model has not"):
        load_float_state_dict(model, {**source.state_dict(), "1.3.cap": torch.ones(3)})


@pytest.mark.usefixtures("process_group")
def test_caps_in_fsdp() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard  # noqa: PLC0415 (takes seconds)

    model = network()
    fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    set_caps(model, {"1": torch.tensor([1.0, 2.0, 3.0]), "3": 0.5})
    assert model[1].cap.full_tensor().tolist() == [1, 2, 3]
    assert model[3].cap.full_tensor().tolist() == [0.5] * 3
    # A forward pass alone leaves gathered copies in place of the parameters.
    for change, expected in (
        (lambda: set_caps(model, 0.25), [0.25] * 3),
        (lambda: project_caps(model, 0.75), [0.75] * 3),
        (lambda: freeze_caps(model), [0.75] * 3),
    ):
        with torch.no_grad():
            model(X)
        change()
        assert model[3].cap.full_tensor().tolist() == expected
        assert model(X).max().item() == expected[0]
    model(X.clone().requires_grad_()).sum().backward()
    assert model[1].cap.grad is None and not model[1].cap.requires_grad
    with pytest.raises(ValueError, match="model: the cap of '1' is sharded, and each process would calibrate it on"):
        calibrate_caps(model, [X])
    flat = FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    for change in (
        lambda: set_caps(flat, 0.5), lambda: calibrate_caps(flat, [X], progress=False), lambda: freeze_caps(flat)
    ):  # fmt: skip
        with pytest.raises(ValueError, match="model: got one inside FullyShardedDataParallel, which may not see its"):
            change()
    with pytest.raises(ValueError, match=r"the cap of '1' is none of its parameters .* flattened by FSDP"):
        set_caps(flat.module, 0.5)


@pytest.mark.parametrize("fixed", [False, True], ids=["DReLU", "SReLU"])
def test_a_plain_copy_holds_the_value_of_a_parametrized_cap(fixed: bool) -> None:
    layer = SReLU(torch.tensor([0.5, 1.0, 2.0])) if fixed else DReLU(3, init=0.5)
    model = nn.Sequential(nn.Linear(3, 3), layer)
    parametrize.register_parametrization(layer, "cap", Scaled())
    plain = copy.deepcopy(to_torch(model))
    assert torch.equal(plain(X), model(X))
    assert [name for name, _ in plain.named_parameters()] == ["0.weight", "0.bias"] + ["1.cap"] * (not fixed)
    assert [name for name, _ in plain.named_buffers()] == ["1.cap"] * fixed
