from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dreluop import DReLU
from dreluop.surgery import HeadedLinear, StemmedConv2d
from studies.drelu_paper.models import NAMES, HeadedNetwork, build, dense_drelu
from tests.support.optional import torchvision_or_skip

OWN = ("dense", "shallow_cnn")
SHAPE = (3, 32, 32)
CLASSES = 7
# The deepest one has the same code as resnet50.
PLACED = [(name, "head") for name in NAMES] + [(name, "stem") for name in NAMES if name not in ("dense", "resnet101")]


def made(name: str, activation: str, place: str = "head", seed: int = 1, init: float = 100.0) -> nn.Module:
    if name not in OWN:
        torchvision_or_skip()
    return build(name, activation, CLASSES, SHAPE, seed, init, place)


@pytest.fixture(scope="module", params=PLACED, ids="-".join)
def baselines(request) -> tuple[str, str, nn.Module, nn.Module]:
    name, place = request.param
    return name, place, made(name, "drelu", place), made(name, "relu", place)


def the_caps(model: nn.Module) -> DReLU:
    (layer,) = (module for module in model.modules() if isinstance(module, DReLU))
    return layer


def convolutions(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules())


def images(n: int = 3) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_same_seed_gives_baselines_with_the_same_weights(baselines):
    _, _, drelu, relu = baselines
    ours, theirs = drelu.state_dict(), relu.state_dict()
    (cap,) = (name for name, module in drelu.named_modules() if isinstance(module, DReLU))
    assert ours.keys() - theirs.keys() == {f"{cap}.cap"}
    assert theirs.keys() <= ours.keys()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_high_caps_make_it_the_relu_network_and_low_caps_do_not(baselines):
    _, _, drelu, relu = (copy.deepcopy(baseline) for baseline in baselines)
    drelu.eval(), relu.eval()
    with torch.no_grad():
        # Untrained and in eval mode, the deepest network goes beyond 100.
        the_caps(drelu).cap.fill_(1e30)
    expected = relu(images())
    assert expected.shape == (3, CLASSES)
    assert torch.equal(drelu(images()), expected)
    with torch.no_grad():
        the_caps(drelu).cap.fill_(1e-3)
    assert not torch.equal(drelu(images()), expected)


def test_gradients_reach_every_weight_and_cap_and_the_image(baselines):
    _, _, model, _ = (copy.deepcopy(baseline) for baseline in baselines)
    with torch.no_grad():
        the_caps(model).cap.fill_(0.05)
    x = images().requires_grad_()
    # Another weight for each logit: softmax and its like would be blind to a shift of all.
    (model.train()(x) * torch.arange(1.0, CLASSES + 1)).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert (the_caps(model).cap.grad != 0).any()


def test_added_layer_is_where_the_paper_has_it(baselines):
    name, place, model, relu = baselines
    layer = the_caps(model)
    assert (layer.cap == 100).all()
    if place == "stem":
        (first,) = (module for module in model.modules() if isinstance(module, StemmedConv2d))
        assert layer is first.activation
        assert layer.cap.shape == (first.stem.out_channels,) == (first.in_channels,) == (16,)
        assert first.stem.in_channels == SHAPE[0]
        assert not any(isinstance(module, HeadedLinear | HeadedNetwork) for module in model.modules())
    elif name in OWN:
        assert layer is model.activation
        assert layer.cap.shape == (model.head.out_features,) == (128,)
    else:
        (output,) = (module for module in model.modules() if isinstance(module, HeadedLinear))
        assert layer is output.activation
        assert layer.cap.shape == (output.head.out_features,) == (output.in_features,) == (128,)
        assert output.out_features == CLASSES
    assert not any(isinstance(module, DReLU) for module in relu.modules())


@pytest.mark.parametrize("name", ["shallow_cnn", "mobilenet_v2"])
def test_stem_is_one_more_convolution(name):
    assert convolutions(made(name, "drelu", "stem")) == convolutions(made(name, "drelu")) + 1


def test_dense_network_is_the_one_of_the_demo():
    linear = [(m.in_features, m.out_features) for m in dense_drelu(0).modules() if isinstance(m, nn.Linear)]
    assert linear == [(784, 256), (256, 256), (256, 128), (128, 10)]
    model = build("dense", "drelu", classes=10, shape=(1, 28, 28), seed=3)
    expected = dense_drelu(3).state_dict()
    assert list(model.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["dense", "shallow_cnn", "mobilenet_v2"])
def test_initial_cap_and_width_of_the_head(name):
    if name not in OWN:
        torchvision_or_skip()
    assert the_caps(build(name, "drelu", CLASSES, SHAPE, 0, init=2.5, head=32)).cap.tolist() == [2.5] * 32


@pytest.mark.parametrize("name", ["shallow_cnn", "mobilenet_v2"])
def test_initial_cap_of_the_stem(name):
    assert the_caps(made(name, "drelu", "stem", init=2.5)).cap.tolist() == [2.5] * 16


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 9, 12)])
def test_shallow_network_takes_the_images_of_every_data_set(shape):
    model = build("shallow_cnn", "relu", classes=4, shape=shape, seed=0)
    assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)] == [16, 32]
    assert model.head.in_features == 32 * (shape[1] // 4) * (shape[2] // 4)
    assert model(torch.rand(2, *shape)).shape == (2, 4)


@pytest.mark.parametrize("name", ["shallow_cnn", "mobilenet_v2"])
def test_seed_decides_the_weights_and_torchs_own_state_is_left_alone(name):
    before = torch.get_rng_state()
    one, same, other = (made(name, "relu", seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [key for key, value in one.items() if value.ndim > 1]
    assert all(torch.equal(one[key], same[key]) for key in weights)
    assert not any(torch.equal(one[key], other[key]) for key in weights)


def test_weights_of_one_network_fit_another():
    one, other = made("mobilenet_v2", "drelu", seed=1).eval(), made("mobilenet_v2", "drelu", seed=2).eval()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(images()), one(images()))


def last_map(model: nn.Module, layer: nn.Module, shape: tuple[int, int, int]) -> tuple[int, ...]:
    seen: list[tuple[int, ...]] = []
    with layer.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[1:]))):
        model.eval()(torch.rand(1, *shape))
    return seen[0]


def test_resnet_keeps_small_images_large_enough():
    model = made("resnet50", "relu")
    assert last_map(model, model.layer4, SHAPE) == (2048, 4, 4)
    # As torchvision starts its convolutions: the variance is 2 over the fan out.
    assert model.conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


def test_mobilenet_keeps_small_images_large_enough():
    model = made("mobilenet_v2", "relu")
    assert last_map(model, model.features, SHAPE) == (1280, 2, 2)


def test_large_images_go_through_torchvisions_own_layers():
    torchvision_or_skip()
    shape = (3, 96, 96)
    resnet = build("resnet50", "relu", CLASSES, shape, 0)
    assert (resnet.conv1.kernel_size, resnet.conv1.stride) == ((7, 7), (2, 2))
    assert isinstance(resnet.maxpool, nn.MaxPool2d)
    assert build("mobilenet_v2", "relu", CLASSES, shape, 0).features[0][0].stride == (2, 2)


@pytest.mark.parametrize(("side", "enlarged"), [(28, 84), (32, 96), (64, 128)])
def test_inception_enlarges_what_is_too_small_for_it(side, enlarged):
    torchvision_or_skip()
    model = build("inception_v3", "relu", CLASSES, (3, side, side), 0)
    assert isinstance(model[0], nn.Upsample)
    assert model[0](torch.rand(1, 3, side, side)).shape == (1, 3, enlarged, enlarged)
    assert not hasattr(model[1], "AuxLogits") or model[1].AuxLogits is None


def test_inception_takes_large_images_as_they_are():
    torchvision_or_skip()
    model = build("inception_v3", "relu", CLASSES, (3, 75, 75), 0)
    assert not any(isinstance(module, nn.Upsample) for module in model.modules())
    assert model.eval()(torch.rand(1, 3, 75, 75)).shape == (1, CLASSES)


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "inception_v3"])
def test_gray_images(name):
    torchvision_or_skip()
    model = build(name, "drelu", classes=10, shape=(1, 28, 28), seed=0)
    assert model.eval()(torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "vgg"}, ValueError, "name: got 'vgg'; expected one of 'dense', 'shallow_cnn', 'resnet50'"),
        ({"activation": "relu6"}, ValueError, "activation: got 'relu6'; expected one of 'relu', 'drelu'"),
        ({"place": "body"}, ValueError, "place: got 'body'; expected one of 'head', 'stem'"),
        (
            {"place": "stem"},
            ValueError,
            "place: got 'stem' for 'dense', which has no convolution; expected 'head'",
        ),
        ({"classes": 0}, ValueError, "classes: got 0; expected at least 1"),
        ({"head": 0}, ValueError, "head: got 0; expected at least 1"),
        ({"shape": (28, 28)}, ValueError, r"shape: got \(28, 28\); expected a tuple \(C, H, W\)"),
        ({"shape": (1, 0, 28)}, ValueError, "shape: got 0; expected at least 1"),
        ({"shape": (1, 3, 28), "name": "shallow_cnn"}, ValueError, r"shape: got \(1, 3, 28\); two poolings need"),
        ({"init": float("nan")}, ValueError, "init: "),
    ],
)
def test_impossible_arguments(arguments, error, message):
    given = {"name": "dense", "activation": "drelu", "classes": 10, "shape": (1, 28, 28), "seed": 0, **arguments}
    with pytest.raises(error, match=message):
        build(**given)
