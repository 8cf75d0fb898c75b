"""A member of each family of torchvision's classifiers; `python -m benchmarks surgery-sweep` checks all of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.surgery import sweep
from dreluop import DReLU, cap_penalty
from dreluop.surgery import insert_head, insert_stem, replace_activations, set_caps, to_torch
from tests.support.optional import torchvision_or_skip
from tests.surgery.helpers import open_caps, weights_of

models = torchvision_or_skip("torchvision.models")

# Of sites in train mode and eval mode.
COUNTS = {
    "resnet18": (17, 17), "resnet50": (49, 49), "inception_v3": (96, 94), "googlenet": (61, 57),
    "densenet121": (121, 121), "mobilenet_v2": (35, 35),
}  # fmt: skip
RUN = (
    "resnet18", "googlenet", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1",
    "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf", "swin_v2_t",
)  # fmt: skip
WITHOUT_RELU = ("efficientnet_b0", "convnext_tiny")


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_the_issue(name: str) -> None:
    model = sweep.make(name)
    assert (sweep.calls(model, True), sweep.calls(model, False)) == COUNTS[name]
    # The auxiliary heads are modules of their own: their sites are there in either mode.
    assert len(replace_activations(model).replaced) == COUNTS[name][0]


@pytest.mark.parametrize("name", RUN)
def test_surgery_keeps_outputs_and_gives_every_cap_a_gradient(name: str) -> None:
    row = sweep.check(name)
    assert row.failure == ""
    assert row.replaced > 0
    assert row.equal is True


@pytest.mark.parametrize("name", WITHOUT_RELU)
def test_without_relu_the_report_is_empty(name: str) -> None:
    row = sweep.check(name)
    assert (row.failure, row.found, row.equal) == ("", 0, None)


@pytest.mark.parametrize("training", [True, False], ids=["cut_in_train", "cut_in_eval"])
def test_googlenet_behaves_as_the_original_in_both_modes(training: bool) -> None:
    original = models.googlenet(weights=None, init_weights=False).train(training)
    model = copy.deepcopy(original)
    report = replace_activations(model)
    open_caps(model, report)
    x = torch.randn(2, 3, 64, 64)
    for mode in (True, False):
        original.train(mode), model.train(mode)
        torch.manual_seed(1)
        want = original(x)
        torch.manual_seed(1)
        got = model(x)
        assert type(got) is type(want)
        for one, other in zip(parts_of(got), parts_of(want), strict=True):
            assert torch.equal(one, other)
    assert isinstance(model, models.GoogLeNet)


def parts_of(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, tuple) else [output]


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "mobilenet_v2", "inception_v3"])
def test_the_papers_models_train_with_head_stem_and_full_replacement(name: str) -> None:
    model = sweep.make(name)
    before = set(model.state_dict())
    insert_stem(model)
    head = insert_head(model)
    report = replace_activations(model, init=5.0)
    assert len(report.replaced) == {"resnet50": 49, "resnet101": 100, "mobilenet_v2": 35, "inception_v3": 96}[name]
    assert before < set(model.state_dict())
    if name == "inception_v3":
        assert head is model.fc
        assert type(model.AuxLogits.fc) is nn.Linear
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    caps = {key: p.detach().clone() for key, p in model.named_parameters() if key.endswith("cap")}
    assert len(caps) == len(report.replaced) + 2
    x, label = sweep.example(name), torch.tensor([1, 2])
    model.train()
    for _ in range(2):
        losses = [nn.functional.cross_entropy(part, label) for part in parts_of(model(x))]
        optimizer.zero_grad()
        (torch.stack(losses).sum() + cap_penalty(model, 1e-2)).backward()
        optimizer.step()
    after = dict(model.named_parameters())
    assert all(bool(after[key].isfinite().all()) and not torch.equal(after[key], cap) for key, cap in caps.items())


def test_resnet_stays_a_resnet_that_reads_well() -> None:
    model = models.resnet18(weights=None)
    before = copy.deepcopy(model.state_dict())
    report = replace_activations(model)
    assert len(report.fused) == 8
    block = model.layer2[0]
    assert (type(model), type(block).__name__) == (models.ResNet, "BasicBlock")
    assert isinstance(block, models.resnet.BasicBlock)
    assert (block.relu.cap.shape, block.relu_1.cap.shape, model.relu.cap.shape) == ((128,), (128,), (64,))
    assert model.load_state_dict(before, strict=False).missing_keys == [f"{site.name}.cap" for site in report.sites]


# All sites of each but the last of DenseNet: its batch norm is the last layer of a Sequential.
IN_BATCH_NORMS = {"resnet18": 17, "resnet50": 49, "mobilenet_v2": 35, "densenet121": 120}


@pytest.mark.parametrize("name", IN_BATCH_NORMS)
def test_batch_norms_get_the_caps(name: str) -> None:
    apart = sweep.make(name).double()
    fused = copy.deepcopy(apart)
    replace_activations(apart, init=2.0)
    report = replace_activations(fused, init=2.0, fuse="batch_norm")
    assert len(report.in_batch_norms) == IN_BATCH_NORMS[name]
    assert {site.reason for site in report.sites if site.action != "batch_norm"} <= {
        "kept apart: its batch norm is not called right before it"
    }
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        results = []
        for model in (apart.train(training), fused.train(training)):
            torch.manual_seed(1)
            model.zero_grad()
            y = model(x)
            y.square().mean().backward()
            results.append(y)
        torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
        largest = max(float(weight.grad.abs().max()) for weight in apart.parameters())
        theirs = dict(apart.named_parameters())
        for key, weight in fused.named_parameters():
            if key in theirs and not key.endswith("cap"):
                torch.testing.assert_close(weight.grad, theirs[key].grad, rtol=1e-5, atol=1e-6 * largest, msg=key)
    sums = [
        sorted(float(weight.grad.sum()) for key, weight in one.named_parameters() if key.endswith("cap"))
        for one in (apart, fused)
    ]
    assert sums[1] == pytest.approx(sums[0], rel=1e-5, abs=1e-6 * largest)


def test_densenet_that_computes_its_layers_anew() -> None:
    """torch.utils.checkpoint takes functions that call modules: the modules are replaced, the code stays."""
    original = models.densenet121(weights=None, memory_efficient=True)
    model = copy.deepcopy(original)
    report = replace_activations(model, example_input=torch.zeros(1, 3, 64, 64))
    assert not report.remaining
    assert len(report.replaced) == COUNTS["densenet121"][0]
    assert not report.left
    layer = model.features.denseblock1.denselayer1
    assert type(layer) is models.densenet._DenseLayer
    x = torch.randn(2, 3, 64, 64)
    open_caps(model, report)
    results = [one(x.clone().requires_grad_()) for one in (original, model)]
    assert torch.equal(*results)
    for result in results:
        result.square().sum().backward()
    for (name, weight), other in zip(original.named_parameters(), weights_of(model), strict=True):
        torch.testing.assert_close(other.grad, weight.grad, msg=name)
    set_caps(model, 1.0)
    model(x.requires_grad_()).square().sum().backward()
    caps = [parameter for name, parameter in model.named_parameters() if name.endswith("cap")]
    # What the first block gets, pooled and capped, is constant but for a few elements: no cap of its first is reached.
    assert sum(bool(cap.grad is not None and cap.grad.abs().sum() > 0) for cap in caps) >= len(caps) - 1


def test_dense_transformer_bias_networks_cap_the_last_dimension() -> None:
    model = models.swin_v2_t(weights=None)
    report = replace_activations(model)
    layer = model.get_submodule(report.sites[0].name)
    assert (layer.cap.shape, layer.dim) == ((512,), -1)


def test_plain_copy_and_export() -> None:
    model = models.mobilenet_v3_small(weights=None).eval()
    replace_activations(model, init=0.5, granularity="neuron", example_input=torch.zeros(1, 3, 64, 64))
    x = torch.randn(2, 3, 64, 64)
    want = model(x)
    assert torch.equal(to_torch(model)(x), want)
    assert not any(isinstance(module, DReLU) for module in to_torch(model).modules())
    assert torch.equal(torch.export.export(model, (x,)).module()(x), want)
