"""All implementations are one network: the same weights and caps, the same outputs and gradients where caps matter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import dreluop
from benchmarks.harness import implementations as c
from benchmarks.models import implementations, networks
from benchmarks.models.implementations import (
    BATCH_NORM,
    FULL,
    FUSED,
    FUSED_MASK,
    HEAD,
    IMPLEMENTATIONS,
    IN_PLACE,
    OURS,
    PLAIN,
    RELU,
    VARIANTS,
    PlainDReLU,
    build,
    caps,
)
from benchmarks.models.steps import AMP, TRAIN, Subject, memory_format
from dreluop.surgery import ResidualDReLU
from tests.benchmarks.models.conftest import ACTIVATIONS, TINY, subject
from tests.support.optional import torchvision_or_skip

# With caps, and the bits of the network with ReLU where these are infinite.
CAPPED = tuple(name for name in IMPLEMENTATIONS if name not in (RELU, BATCH_NORM))
REFERENCE = c.RELU_MINIMUM.name


def gradients(of: Subject) -> dict[str, Tensor]:
    of.loss().backward()
    return {name: parameter.grad for name, parameter in of.model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", [name for name in CAPPED if name != REFERENCE])
def test_the_same_outputs_and_gradients(name: str, variant: str) -> None:
    expected, found = subject(REFERENCE, variant), subject(name, variant)
    for of in (expected, found):
        with torch.no_grad():
            for cap in caps(of.model):
                cap.fill_(0.4)
    torch.testing.assert_close(found.loss(), expected.loss())
    assert torch.equal(found.outputs(), expected.outputs())
    assert not torch.equal(found.outputs(), subject(RELU, variant).outputs()), "the caps do not matter"
    of_found, of_expected = gradients(found), gradients(expected)
    assert list(of_found) == list(of_expected)
    assert set(of_found) == {name for name, _ in found.model.named_parameters()}
    for key, gradient in of_found.items():
        torch.testing.assert_close(gradient, of_expected[key], rtol=1e-4, atol=1e-6, msg=key)
    assert all((gradient != 0).any() for key, gradient in of_found.items() if key.endswith("cap"))


@pytest.mark.parametrize(
    ("name", "against"), [*((name, REFERENCE) for name in CAPPED[1:]), (FUSED, OURS), (FUSED_MASK, OURS)]
)
def test_the_same_in_half_precision(name: str, against: str) -> None:
    """bfloat16 often meets a cap exactly, where implementations send the gradient elsewhere, but ours to one place."""
    images, labels = networks.data(6, 8, torch.device("cpu"), memory_format(AMP))
    expected, found = (Subject(TINY, FULL, who, (images, labels), precision=AMP) for who in (against, name))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert found.outputs().dtype == torch.bfloat16
    assert torch.equal(found.outputs(), expected.outputs())
    if against == OURS:
        of_expected = gradients(expected)
        for key, gradient in gradients(found).items():
            torch.testing.assert_close(gradient, of_expected[key], rtol=2**-6, atol=1e-6, msg=key)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", CAPPED)
def test_with_infinite_caps_it_is_the_network_with_relu(name: str, variant: str) -> None:
    expected, found = subject(RELU, variant), subject(name, variant)
    with torch.no_grad():
        for cap in caps(found.model):
            cap.fill_(math.inf)
    assert torch.equal(found.outputs(), expected.outputs())


def test_batch_norms_with_caps_compute_the_same_but_for_rounding() -> None:
    expected, found = subject(FUSED, FULL), subject(BATCH_NORM, FULL)
    assert len(caps(found.model)) == ACTIVATIONS
    assert sum(isinstance(module, dreluop.BatchNormDReLU2d) for module in found.model.modules()) > 1
    for value in (math.inf, 0.4):
        with torch.no_grad():
            for cap in caps(expected.model) + caps(found.model):
                cap.fill_(value)
        torch.testing.assert_close(found.outputs(), expected.outputs(), rtol=1e-4, atol=1e-5)
    of_found, of_expected = gradients(found), gradients(expected)
    assert set(of_found) == {name for name, _ in found.model.named_parameters()}
    for key in of_found.keys() & of_expected.keys():
        torch.testing.assert_close(of_found[key], of_expected[key], rtol=1e-3, atol=1e-5, msg=key)


def test_the_same_weights_whatever_was_drawn_before() -> None:
    states = []
    for name in IMPLEMENTATIONS:
        torch.rand(3)
        states.append({key: value for key, value in build(TINY, HEAD, name).state_dict().items() if "cap" not in key})
    for state in states[1:]:
        assert list(state) == list(states[0])
        assert all(torch.equal(state[key], states[0][key]) for key in state)


def activations(name: str, variant: str = FULL) -> list[nn.Module]:
    kinds = (nn.ReLU, PlainDReLU, dreluop.DReLU)
    return [module for module in build(TINY, variant, name).modules() if isinstance(module, kinds)]


def test_what_each_implementation_is_made_of() -> None:
    assert [type(module) for module in activations(RELU)] == [nn.ReLU]
    for name, function in PLAIN.items():
        made = activations(name)
        assert len(made) == ACTIVATIONS
        # The very functions that the tests hold against the oracle.
        assert all(isinstance(module, PlainDReLU) and module.function is function for module in made)
    for name, inplace, fused, save in (
        (OURS, False, 0, "output"),
        (IN_PLACE, True, 0, "output"),
        (FUSED, True, 1, "output"),
        (FUSED_MASK, True, 1, "mask"),
    ):
        ours = activations(name)
        assert len(ours) == ACTIVATIONS
        assert sum(isinstance(module, ResidualDReLU) for module in ours) == fused
        assert all((module.inplace, module.save) == (inplace, save) for module in ours)


def test_only_the_head_is_changed() -> None:
    assert [type(module) for module in activations(RELU, HEAD)] == [nn.ReLU, nn.ReLU]
    assert sorted(type(module).__name__ for module in activations(OURS, HEAD)) == ["DReLU", "ReLU"]
    assert sorted(type(module).__name__ for module in activations(REFERENCE, HEAD)) == ["PlainDReLU", "ReLU"]


@pytest.mark.parametrize("name", CAPPED)
def test_the_penalty_is_part_of_the_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementations, "BALANCER", 0.0)
    without = subject(name).loss().item()
    monkeypatch.setattr(implementations, "BALANCER", 0.5)
    expected = 0.5 * ACTIVATIONS * 8 * implementations.CAP**2
    assert subject(name).loss().item() - without == pytest.approx(expected, rel=1e-5)
    assert implementations.penalty(build(TINY, FULL, RELU), RELU) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", FULL, OURS), "network: got 'nothing'"),
        ((TINY, "half", OURS), "variant: got 'half'; expected one of 'full', 'head'"),
        ((TINY, FULL, "ours"), "implementation: got 'ours'"),
    ],
)
def test_unknown_names(arguments: tuple[str, str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(*arguments)


@pytest.mark.parametrize(
    ("name", "replaced", "fused"), [("resnet50", 49, 16), ("mobilenet_v2", 35, 0), ("inception_v3", 96, 0)]
)
def test_the_papers_networks(name: str, replaced: int, fused: int) -> None:
    torchvision_or_skip()
    model = build(name, FULL, FUSED)
    ours = [module for module in model.modules() if isinstance(module, dreluop.DReLU)]
    assert (len(ours), sum(isinstance(module, ResidualDReLU) for module in ours)) == (replaced, fused)
    assert all(module.inplace for module in ours)
    assert len(caps(build(name, HEAD, OURS))) == 1


def test_an_auxiliary_head_has_its_loss() -> None:
    logits, more = torch.randn(2, 4, networks.CLASSES)
    labels = torch.tensor([1, 2, 3, 4])
    both = networks.loss_of((logits, more), labels)
    expected = nn.functional.cross_entropy(logits, labels) + 0.4 * nn.functional.cross_entropy(more, labels)
    torch.testing.assert_close(both, expected)
    assert torch.equal(networks.loss_of(logits, labels), nn.functional.cross_entropy(logits, labels))


def test_a_train_step_changes_weights_and_caps_and_inference_nothing() -> None:
    for pass_, changes in ((TRAIN, True), ("inference", False)):
        of = subject(OURS, pass_=pass_)
        before = {key: value.clone() for key, value in of.model.state_dict().items()}
        of.step()
        after = of.model.state_dict()
        assert of.model.training is changes
        for key in ("conv1.weight", "relu.cap", "norm1.running_mean"):
            assert (not torch.equal(before[key], after[key])) is changes, key
