"""torchvision's networks without trained weights, changed so that they take small images.

The paper does not say how it fed 32x32 images to them. Here:

- ResNets: for images of at most 64 pixels the 7x7 convolution of stride 2 becomes a 3x3 one of stride 1, and the max
  pooling after it goes, as is usual on CIFAR; unchanged they would leave one pixel of a 32x32 image.
- MobileNetV2: for such images the first convolution has stride 1.
- InceptionV3 takes no image below 75 pixels: smaller ones are enlarged inside the model, by a whole factor, so that an
  attack perturbs the image itself. It has no auxiliary head and starts from torch's default weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

SMALL = 64
INCEPTION_MINIMUM = 75


def _resnet(name: str) -> Callable[[int, tuple[int, int, int]], nn.Module]:
    def build(classes: int, shape: tuple[int, int, int]) -> nn.Module:
        model: Any = _torchvision(name, classes)
        if _is_small(shape):
            model.conv1 = _started(nn.Conv2d(shape[0], model.conv1.out_channels, 3, padding=1, bias=False))
            model.maxpool = nn.Identity()
        else:
            model.conv1 = _started(_taking(shape[0], model.conv1))
        return model  # type: ignore[no-any-return]

    return build


def _mobilenet_v2(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    model: Any = _torchvision("mobilenet_v2", classes)
    first = model.features[0]
    first[0] = _started(_taking(shape[0], first[0]))
    if _is_small(shape):
        first[0].stride = (1, 1)
    return model  # type: ignore[no-any-return]


def _inception_v3(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    model: Any = _torchvision("inception_v3", classes, aux_logits=False, init_weights=False)
    model.Conv2d_1a_3x3.conv = _taking(shape[0], model.Conv2d_1a_3x3.conv)
    return model  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Network:
    """How to make a network, given the number of classes and an image's shape (C, H, W), and where layers are added.

    Attributes:
        first, output: names of the first convolution and of the output layer. Surgery would find them too, by a trace
            that takes seconds.
    """

    build: Callable[[int, tuple[int, int, int]], nn.Module]
    first: str
    output: str


NETWORKS = {
    "resnet50": Network(_resnet("resnet50"), "conv1", "fc"),
    "resnet101": Network(_resnet("resnet101"), "conv1", "fc"),
    "mobilenet_v2": Network(_mobilenet_v2, "features.0.0", "classifier.1"),
    "inception_v3": Network(_inception_v3, "Conv2d_1a_3x3.conv", "fc"),
}


def enlarged(name: str, shape: tuple[int, int, int], model: nn.Module) -> nn.Module:
    """The model behind a bilinear enlargement where it takes no images of this size; else the model itself."""
    factor = math.ceil(INCEPTION_MINIMUM / min(shape[1:])) if name == "inception_v3" else 1
    if factor == 1:
        return model
    return nn.Sequential(nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False), model)


def _torchvision(name: str, classes: int, **options: Any) -> nn.Module:
    from torchvision import models  # noqa: PLC0415 (slow to import; dense networks do without)

    model: nn.Module = getattr(models, name)(weights=None, num_classes=classes, **options)
    return model


def _is_small(shape: tuple[int, int, int]) -> bool:
    return max(shape[1:]) <= SMALL


def _taking(channels: int, conv: nn.Conv2d) -> nn.Conv2d:
    if channels == conv.in_channels:
        return conv
    kernel, stride, padding = (int(pair[0]) for pair in (conv.kernel_size, conv.stride, conv.padding))
    return nn.Conv2d(channels, conv.out_channels, kernel, stride, padding, bias=False)


def _started(conv: nn.Conv2d) -> nn.Conv2d:
    # As torchvision starts the convolutions of ResNets and MobileNetV2.
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
