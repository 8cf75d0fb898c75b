from __future__ import annotations

import torch
from torch import nn

from dreluop import DReLU
from studies.drelu_paper.models import dense_drelu, dense_relu


def test_layers():
    model = dense_drelu(0)
    linear = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert linear == [(784, 256), (256, 256), (256, 128), (128, 10)]
    assert isinstance(model.activation, DReLU)
    assert model.activation.cap.shape == (128,)
    assert (model.activation.cap == 100).all()


def test_same_seed_gives_baselines_with_the_same_weights():
    drelu, relu = dense_drelu(3).state_dict(), dense_relu(3).state_dict()
    assert drelu.keys() - relu.keys() == {"activation.cap"}
    assert all(torch.equal(drelu[name], relu[name]) for name in relu)


def test_another_seed_gives_other_weights():
    assert not torch.equal(dense_relu(0).head.weight, dense_relu(1).head.weight)


def test_building_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    dense_drelu(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_high_caps_make_it_the_relu_network_and_low_caps_do_not():
    x = torch.rand(7, 1, 28, 28)
    expected = dense_relu(0)(x)
    assert expected.shape == (7, 10)
    assert torch.equal(dense_drelu(0)(x), expected)
    assert not torch.equal(dense_drelu(0, init=1e-3)(x), expected)
