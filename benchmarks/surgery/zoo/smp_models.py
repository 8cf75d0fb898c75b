"""segmentation_models_pytorch: every kind of encoder in a U-Net, and every decoder on two encoders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.surgery.zoo.case import Case

_ENCODERS = """
densenet121 dpn68 efficientnet-b0 inceptionresnetv2 inceptionv4 mit_b0 mobilenet_v2 mobileone_s0 resnet18
resnext50_32x4d se_resnet50 se_resnext50_32x4d timm-efficientnet-b0 timm-skresnet18 timm-tf_efficientnet_lite0 vgg11_bn
xception tu-regnetx_002 tu-repvgg_a0
"""
_DECODERS = "DeepLabV3 DeepLabV3Plus FPN Linknet MAnet PAN PSPNet Segformer UPerNet UnetPlusPlus"


def cases() -> Sequence[Case]:
    pairs = [("Unet", encoder) for encoder in _ENCODERS.split()]
    pairs += [(decoder, encoder) for decoder in _DECODERS.split() for encoder in ("resnet18", "dpn68")]
    return [
        Case(
            f"segmentation_models_pytorch/{decoder}-{encoder}",
            partial(_build, decoder, encoder),
            partial(_inputs, decoder),
        )
        for decoder, encoder in pairs
    ]


def _build(decoder: str, encoder: str) -> nn.Module:
    import segmentation_models_pytorch as smp  # noqa: PLC0415 (optional)

    model: nn.Module = smp.create_model(decoder, encoder, encoder_weights=None)
    return model


def _inputs(decoder: str) -> tuple[Tensor]:
    size = 128 if decoder == "PAN" else 64
    return (torch.randn(2, 3, size, size),)
