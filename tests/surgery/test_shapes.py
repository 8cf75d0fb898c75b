"""How many caps a site gets: a count that is not known is an error, never a guess."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dreluop import DReLU
from dreluop.surgery import replace_activations, set_caps
from tests.surgery.helpers import open_caps
from tests.surgery.models import Users


class Layers(nn.Module):
    """Three layers and their outputs in every combination, then ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.many, self.linear = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 8, 1), nn.Linear(6, 4)


class Product(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.many(x) * self.one(x))


class Mask(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.one(x) * self.many(x))


class Difference(Layers):
    def forward(self, x: Tensor) -> Tensor:
        many = self.many(x)
        many -= many.mean(0)
        return many.relu()


class Gate(Layers):
    def forward(self, x: Tensor) -> Tensor:
        many = self.many(x)
        return functional.relu(many * functional.adaptive_avg_pool2d(many, 1))


class SumWithUnknown(Layers):
    def forward(self, x: Tensor) -> Tensor:
        many = self.many(x)
        return functional.relu(many + many.flip(1))


class Pooled(Layers):
    """What a classifier of digits does."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(functional.max_pool2d(self.many(x), 2))


class Cat(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(torch.cat([self.one(x), self.many(x)], 1))


class Unsqueezed(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.many(x).sum((2, 3)).unsqueeze(1).flatten(1))


class MaskFirst(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.one(x) * self.many(x).flip(1))


class MaskAdded(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.one(x) + self.many(x).flip(1))


class PooledFeatures(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(functional.max_pool2d(self.linear(x), (1, 2)))


class Permuted(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.many(x).permute(0, 2, 3, 1).contiguous())


class Wider(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([super().forward(input), input], 1)


KNOWN: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 5, 1), nn.ReLU()), 5, 1),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(3, 6, 1, groups=3), nn.ReLU()), 6, 1),
    "group_norm": (lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(2, 6), nn.ReLU()), 6, 1),
    "layer_norm": (lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.ReLU()), 4, -1),
    "layer_norm_of_images": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.LayerNorm([8, 6, 6]), nn.ReLU()), 8, 1),
    "instance_norm": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(5), nn.ReLU()), 8, 1),
    "product": (Product, 8, 1),
    "mask": (Mask, 8, 1),
    "difference": (Difference, 8, 1),
    "gate": (Gate, 8, 1),
    "sum_with_unknown": (SumWithUnknown, 8, 1),
    "pooled": (Pooled, 8, 1),
}  # fmt: skip
UNKNOWN: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "flatten": (lambda: nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten(), nn.ReLU()), 180, 1),
    "shuffle": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.PixelShuffle(2), nn.ReLU()), 2, 1),
    "cat": (Cat, 9, 1),
    "permuted": (Permuted, 8, -1),
    "unsqueezed": (Unsqueezed, 8, 1),
    "mask_first": (MaskFirst, 8, 1),
    "mask_added": (MaskAdded, 8, 1),
    "pooled_features": (PooledFeatures, 2, -1),
    "own_forward": (lambda: nn.Sequential(Wider(3, 5, 1), nn.ReLU()), 8, 1),
}  # fmt: skip
X = torch.randn(2, 3, 6, 6)


@pytest.mark.parametrize("name", KNOWN)
def test_counts_from_the_layers_before(name: str) -> None:
    make, channels, dim = KNOWN[name]
    model = make()
    (site,) = replace_activations(model).replaced
    layer = model.get_submodule(site.name)
    assert isinstance(layer, DReLU)
    assert (tuple(layer.cap.shape), layer.dim) == ((channels,), dim)
    assert model(X).min() >= 0


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_counts_need_an_example(name: str) -> None:
    make, channels, dim = UNKNOWN[name]
    model = make()
    before = repr(model)
    with pytest.raises(ValueError, match=r"example_input: the layer before does not tell how many channels these"):
        replace_activations(model)
    assert repr(model) == before
    (site,) = replace_activations(model, example_input=X).replaced
    assert site.cap_shape == (channels,)
    assert model.get_submodule(site.name).dim == dim
    assert model(X).min() >= 0


def test_channel_counts_come_from_the_layers_before() -> None:
    model = Users()
    sites = {site.name: site.cap_shape for site in replace_activations(model).sites}
    assert sites["stem.2"] == (8,)
    assert [sites[f"stages.low.0.relu{end}"] for end in ("", "_1", "_2")] == [(4,), (4,), (8,)]
    assert [sites["stages.low.1.1"], sites["stages.low.1.3"]] == [(6,), (4,)]
    assert sites["classifier.2"] == (10,)


def test_features_come_last_after_a_linear() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU())
    replace_activations(model)
    assert model(torch.randn(2, 3, 5)).shape == (2, 3, 7)
    assert model[1].cap.shape == (7,)


@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron"])
def test_granularities_with_an_example(granularity: Any) -> None:
    model = Users().train()
    before = copy.deepcopy(model)
    report = replace_activations(model, granularity=granularity, example_input=torch.randn(1, 3, 6, 6))
    expected = {"layer": (1,), "channel": (8,), "neuron": (8, 6, 6)}[granularity]
    stem = next(site for site in report.sites if site.name == "stem.2")
    assert (stem.cap_shape, stem.shape) == (expected, (1, 8, 6, 6))
    # The run that looked at the shapes left statistics and modes alone.
    for key, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    assert all(module.training for module in model.modules())
    open_caps(model, report)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(model(x), before(x))


class Remembering(nn.Module):
    """Goes by its data, writes into itself, and has an activation that no input reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.act, self.unused = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.ReLU()
        self.last: Any = None
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.last, self.count = x, self.count + 1
        x = self.act(self.norm(self.linear(x)))
        return self.unused(x.flip(1)) if x.sum() < 0 else x


@pytest.mark.parametrize("granularity", ["channel", "neuron"])
def test_the_run_leaves_nothing_behind_and_unreached_sites_as_they_are(granularity: Any) -> None:
    original = Remembering()
    model = copy.deepcopy(original)
    report = replace_activations(model, granularity=granularity, example_input=torch.randn(1, 6))
    assert (model.last, model.count, model.training) == (None, 0, True)
    assert torch.equal(model.norm.running_mean, original.norm.running_mean)
    assert model.norm.num_batches_tracked == 0
    assert [(site.name, site.action) for site in report.sites] == [("act", "replaced"), ("unused", "left")]
    assert "the example does not reach it" in report.left[0].reason
    assert type(model.unused) is nn.ReLU
    assert model.act.cap.shape == (4,)


class TwoWidths(nn.Module):
    """One call of an activation that gets two numbers of channels, and another one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.act, self.last = nn.ModuleList([nn.Linear(6, 4), nn.Linear(4, 3)]), nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.act(layer(x))
        return functional.relu(self.last(x))


def test_a_call_of_two_widths_is_left_and_reported_and_the_others_are_done() -> None:
    original = TwoWidths()
    model = copy.deepcopy(original)
    report = replace_activations(model, example_input=torch.randn(2, 6))
    assert [(site.name, site.action) for site in report.sites] == [("act", "left"), ("relu", "replaced")]
    (remaining,) = report.remaining
    assert (remaining.calls, remaining.line) == (2, report.sites[0].line)
    assert remaining.reason.startswith("it is called with the shapes (2, 4), (2, 3), which cannot share channel caps")
    assert type(model.act) is nn.ReLU
    model = copy.deepcopy(original)
    report = replace_activations(model, granularity="layer", example_input=torch.randn(2, 6))
    assert report.sites[0].reason == "it is called 2 times in a forward pass, with the same caps"
    assert not report.remaining


class Tokens(nn.Module):
    """(batch, tokens, features) behind a layer that is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(functional.relu(x @ self.weight) @ self.weight.T)


def test_a_dimension_that_is_not_known_is_asked_for_at_all_sites_at_once() -> None:
    x = torch.randn(2, 3, 6)
    with pytest.raises(ValueError, match=r"may lie in any dimension, .*'relu' \(2, 3, 4\), 'relu_1' \(2, 3, 6\)"):
        replace_activations(Tokens(), example_input=x)
    for dim in (-1, lambda site: 2):
        report = replace_activations(Tokens(), example_input=x, dim=dim)
        assert [site.cap_shape for site in report.replaced] == [(4,), (6,)]
    assert [site.cap_shape for site in replace_activations(Tokens(), example_input=x, dim=1).sites] == [(3,), (3,)]
    with pytest.raises(ValueError, match=r"dim: got 3 for 'relu', which gets shape \(2, 3, 4\)"):
        replace_activations(Tokens(), example_input=x, dim=3)
    with pytest.raises(TypeError, match="dim of 'relu': got str; expected an int"):
        replace_activations(Tokens(), example_input=x, dim=lambda site: "last")  # type: ignore[arg-type, return-value]


class Viewed(nn.Module):
    """A view that hides which dimension a layer made, before a layer that tells which one it takes."""

    def __init__(self, after: nn.Module) -> None:
        super().__init__()
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.after(functional.relu(x.view(2, 3, 4, 5)))
        return result


@pytest.mark.parametrize(("after", "channels", "dim"), [(nn.Conv2d(3, 2, 1), 3, 1), (nn.Linear(5, 2), 5, -1)])
def test_the_layer_after_tells_the_dimension_too(after: nn.Module, channels: int, dim: int) -> None:
    model = Viewed(after)
    (site,) = replace_activations(model, example_input=torch.randn(2, 60)).replaced
    assert (site.cap_shape, model.relu.dim) == ((channels,), dim)


def test_images_without_a_batch_have_their_channels_first() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU())
    (site,) = replace_activations(model, example_input=torch.randn(3, 5, 5)).replaced
    assert (site.cap_shape, model[1].dim) == ((6,), 0)
    assert model(torch.randn(3, 5, 5)).shape == (6, 5, 5)


def test_transformers_are_capped_by_features() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 10), 2))
    report = replace_activations(model, example_input=torch.randn(5, 2, 4))
    assert [(site.name, site.cap_shape) for site in report.replaced] == [
        ("1.layers.0.activation", (10,)), ("1.layers.1.activation", (10,)),
    ]  # fmt: skip
    assert not report.remaining


def test_lazy_modules_are_refused() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d(), nn.ReLU())
    with pytest.raises(ValueError, match=r"model: '0.weight' of a lazy module has no shape yet; run the model once"):
        replace_activations(model)
    model(X)
    assert replace_activations(model).sites[0].cap_shape == (4,)


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor, shift: Any) -> Tensor:
        return functional.relu(self.linear(x) + shift)


def test_a_fused_sum_may_be_one_with_a_number() -> None:
    original = Shifted()
    model = copy.deepcopy(original)
    (site,) = replace_activations(model).fused
    x = torch.randn(5, 6)
    for shift in (0.5, 2, torch.ones(4), torch.ones(5, 4)):
        assert torch.equal(model(x, shift), original(x, shift)), site


class Foldable(nn.Module):
    """Two branches that call one activation, as networks have that can be folded; a method that calls it again."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Linear(6, 4), nn.Linear(6, 4), nn.ReLU()
        self.folded: nn.Module | None = None

    def features(self, x: Tensor) -> Tensor:
        return self.act(self.one(x))

    def forward(self, x: Tensor) -> Tensor:
        if self.folded is not None:
            return self.act(self.folded(x).mul(1))
        return self.act(self.one(x) * self.two(x))


@pytest.mark.parametrize("example", [True, False], ids=["example", "no_example"])
def test_calls_that_are_not_reached_keep_to_the_activation_of_those_that_are(example: bool) -> None:
    model, x = Foldable(), torch.randn(3, 6)
    report = replace_activations(model, init=0.1, granularity="layer", example_input=x if example else None)
    names = ["act", "act" if example else "act_1", "act"]
    assert [(site.name, site.action) for site in report.sites] == [(name, "replaced") for name in names]
    assert "calls the D-ReLU of another call" in report.sites[2].reason
    assert model(x).max() <= 0.1 and model.features(x).max() <= 0.1
    model.folded = model.one
    assert model(x).max() <= 0.1
    set_caps(model, {"act": 0.01})
    assert model.features(x).max() <= 0.01
    assert model(x).max() <= 0.01
