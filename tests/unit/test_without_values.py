"""Caps without values, on the meta device or fake: they get them by ``reset_parameters``, or a message says why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from dreluop import DReLU, LazyDReLU, SReLU, capped_relu, project_caps, project_caps_after_step
from dreluop.adaptive import smooth_forward, surrogate_backward
from dreluop.surgery import calibrate_caps, cap_summary, freeze_caps, load_float_state_dict, set_caps, to_torch

LAYERS: dict[str, tuple[Callable[[], Any], list[float]]] = {
    "SReLU": (lambda: SReLU(6.0), [6.0]),
    "SReLU of infinity": (lambda: SReLU(float("inf")), [float("inf")]),
    "DReLU": (lambda: DReLU(3, init=2.0), [2.0] * 3),
    "PReLU": (lambda: nn.PReLU(3, init=0.5), [0.5] * 3),
}


def held(layer: nn.Module) -> Tensor:
    (tensor,) = [*layer.parameters(), *layer.buffers()]
    return tensor


def model_without_values(kind: str) -> nn.Module:
    with torch.device("meta") if kind == "meta" else FakeTensorMode():
        return nn.Sequential(nn.Linear(3, 3), DReLU(3), SReLU(2.0), DReLU(1))


@pytest.mark.parametrize("name", LAYERS)
def test_made_on_meta_and_reset(name: str) -> None:
    make, values = LAYERS[name]
    with torch.device("meta"):
        layer = make()
    layer.reset_parameters()
    assert held(layer).is_meta
    layer.to_empty(device="cpu")
    held(layer).detach().fill_(9)
    layer.reset_parameters()
    assert held(layer).tolist() == values


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_reset_of_a_fixed_cap_made_of_a_tensor(shape: tuple[int, ...]) -> None:
    given = torch.randn(shape).abs()
    layer, wanted = SReLU(given), given.clone()
    given.fill_(7)
    layer.to("meta").to_empty(device="cpu").cap.fill_(9)
    layer.reset_parameters()
    assert torch.equal(layer.cap, wanted)
    layer.half().cap.fill_(9)
    layer.reset_parameters()
    assert torch.equal(layer.cap, wanted.half())


def test_reset_of_nan_and_of_a_changed_cap() -> None:
    layer = SReLU(float("nan"))
    layer.cap.fill_(1)
    layer.reset_parameters()
    assert layer.cap.isnan().all()
    with pytest.raises(ValueError, match=r"cap: got 1e-09, which torch\.float16 rounds to 0"):
        SReLU(1e-9).half().reset_parameters()


def test_a_fixed_cap_made_of_a_meta_tensor_cannot_be_reset() -> None:
    layer = SReLU(torch.ones(3, device="meta")).to_empty(device="cpu")
    with pytest.raises(ValueError, match="cap: the module was made of a tensor on the meta device"):
        layer.reset_parameters()


def test_a_lazy_layer_that_ran_on_meta() -> None:
    with torch.device("meta"):
        layer = LazyDReLU("channel", init=3.0)
        layer(torch.empty(2, 4))
    layer.to_empty(device="cpu").reset_parameters()
    assert type(layer) is DReLU
    assert layer.cap.tolist() == [3.0] * 4


REFUSED: dict[str, Callable[[nn.Module], Any]] = {
    "set_caps": lambda model: set_caps(model, 0.5),
    "calibrate_caps": lambda model: calibrate_caps(model, [torch.randn(2, 3)]),
    "cap_summary": cap_summary,
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_what_reads_or_sets_caps_names_them(name: str, kind: str) -> None:
    place = {"meta": "on the meta device", "fake": "in a fake tensor"}[kind]
    with pytest.raises(ValueError, match=f"the cap of '1' is {place}, where it has no value"):
        REFUSED[name](model_without_values(kind))


def test_projection_and_loading_refuse_meta() -> None:
    model = model_without_values("meta")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for project in (lambda: project_caps(model), lambda: project_caps_after_step(optimizer, model)):
        with pytest.raises(ValueError, match=r"caps\[0\]: got a cap on the meta device"):
            project()
    with pytest.raises(ValueError, match=r"'0\.weight' is on the meta device"):
        load_float_state_dict(model, nn.Sequential(nn.Linear(3, 3)).state_dict())


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # by copy.deepcopy of torch
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_what_needs_no_value_works(kind: str) -> None:
    model = model_without_values(kind)
    assert "SReLU(cap=(1,))" in repr(model)
    assert freeze_caps(model) == ["1", "3"]
    assert len(to_torch(model)) == 4


def test_a_value_without_numbers_is_refused() -> None:
    model = nn.Sequential(DReLU(3))
    with pytest.raises(ValueError, match="value of '0': got one on the meta device"):
        set_caps(model, torch.ones(3, device="meta"))
    assert model[0].cap.tolist() == [100.0] * 3


@pytest.mark.parametrize("context", [lambda: surrogate_backward("soft"), smooth_forward], ids=["soft", "smooth"])
def test_width_from_fake_tensors(context: Callable[[], Any]) -> None:
    with FakeTensorMode(), context():
        x, cap = torch.randn(4, 5, requires_grad=True), torch.ones(5, requires_grad=True)
        dx, dcap = torch.autograd.grad(capped_relu(x, cap).sum(), (x, cap))
    assert dx.shape == (4, 5)
    assert dcap.shape == (5,)
