"""The paper's networks by name, with D-ReLU or ReLU in the layer that it adds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from dreluop import DReLU
from dreluop.surgery import insert_head, insert_stem
from studies.drelu_paper.models import torchvision_networks
from studies.drelu_paper.models.small import HEAD, DenseNetwork, HeadedNetwork, convolutional_body

NAMES = ("dense", "shallow_cnn", *torchvision_networks.NETWORKS)
ACTIVATIONS = ("relu", "drelu")
PLACES = ("head", "stem")
# The paper does not say how many channels its stem has.
STEM_CHANNELS = 16


def build(
    name: str,
    activation: str,
    classes: int,
    shape: tuple[int, int, int],
    seed: int,
    init: float = 100.0,
    place: str = "head",
    head: int = HEAD,
) -> nn.Module:
    """A network on the CPU, in train mode, for inputs in [0, 1] of shape (N, *shape); it gives logits (N, classes).

    ``place="head"`` adds a dense layer before the output layer (Figure 10), with one cap per neuron; ``"stem"`` adds
    a 3x3 convolution before the first one instead, with one cap per channel (Figure 13), and no dense layer.
    Inputs are not normalized: the paper names no normalization, and a bound on the perturbation is one of the input.

    Args:
        name: one of ``NAMES``.
        activation: of the added layer, ``"relu"`` or ``"drelu"``. Both have the same weights for the same seed.
        shape: of an image, (C, H, W). ``torchvision_networks`` says how small ones are taken.
        seed: of the weights, which depend on nothing but it and the arguments. torch's random state is left alone.
        init: initial value of every cap; 100 is the paper's.
        place: of the added layer; the dense network has no convolution and so no ``"stem"``.
        head: width of the added dense layer.

    Raises:
        ValueError: an argument is not as above.
        ModuleNotFoundError: torchvision is not installed, and the network is one of its.
    """
    check(name, activation, place)
    if len(shape) != 3:
        raise ValueError(f"shape: got {shape!r}; expected a tuple (C, H, W)")
    for key, value in (("classes", classes), ("head", head), *(("shape", size) for size in shape)):
        if value < 1:
            raise ValueError(f"{key}: got {value}; expected at least 1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = (
            _with_stem(name, classes, shape, init) if place == "stem" else _with_head(name, classes, shape, head, init)
        )
    model, added = made
    if activation == "relu":
        added.activation = nn.ReLU()
    return torchvision_networks.enlarged(name, shape, model)


def _with_head(name: str, classes: int, shape: tuple[int, int, int], head: int, init: float) -> tuple[nn.Module, Any]:
    network = torchvision_networks.NETWORKS.get(name)
    if network is not None:
        model = network.build(classes, shape)
        return model, insert_head(model, width=head, init=init, layer=network.output)
    caps = DReLU(num_parameters=head, init=init)
    if name == "dense":
        small: HeadedNetwork = DenseNetwork(caps, math.prod(shape), head, classes)
    else:
        body, features = convolutional_body(shape)
        small = HeadedNetwork(body, features, head, caps, classes)
    return small, small


def _with_stem(name: str, classes: int, shape: tuple[int, int, int], init: float) -> tuple[nn.Module, Any]:
    network = torchvision_networks.NETWORKS.get(name)
    if network is not None:
        model, first = network.build(classes, shape), network.first
    else:
        body, features = convolutional_body(shape)
        model, first = nn.Sequential(*body, nn.Linear(features, classes)), "0"
    return model, insert_stem(model, channels=STEM_CHANNELS, init=init, layer=first)


def check(name: str, activation: str, place: str) -> None:
    """Check the network that is asked for, without building it."""
    asked = (("name", name, NAMES), ("activation", activation, ACTIVATIONS), ("place", place, PLACES))
    for key, value, known in asked:
        if value not in known:
            raise ValueError(f"{key}: got {value!r}; expected one of {', '.join(map(repr, known))}")
    if name == "dense" and place == "stem":
        raise ValueError("place: got 'stem' for 'dense', which has no convolution; expected 'head'")
