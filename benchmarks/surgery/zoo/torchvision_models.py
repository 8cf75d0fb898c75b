"""torchvision: what is no classifier of pictures: detection, segmentation, video and optical flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.surgery.zoo.case import Case

_SEGMENTATION = "deeplabv3_mobilenet_v3_large deeplabv3_resnet50 fcn_resnet50 lraspp_mobilenet_v3_large"
_DETECTION = """
fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_mobilenet_v3_large_fpn fasterrcnn_resnet50_fpn
fasterrcnn_resnet50_fpn_v2 fcos_resnet50_fpn keypointrcnn_resnet50_fpn maskrcnn_resnet50_fpn maskrcnn_resnet50_fpn_v2
retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 ssd300_vgg16 ssdlite320_mobilenet_v3_large
"""
_VIDEO = "mc3_18 r2plus1d_18 r3d_18 s3d swin3d_t"


def cases() -> Sequence[Case]:
    kinds: list[tuple[str, Callable[[str], Any]]] = [
        (_SEGMENTATION, lambda _: (torch.randn(2, 3, 64, 64),)),
        (_DETECTION, _scenes),
        (_VIDEO, _clips),
        ("raft_large raft_small", lambda _: (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128), 2)),
    ]
    return [
        Case(f"torchvision/{name}", partial(_build, name), partial(inputs, name))
        for names, inputs in kinds
        for name in names.split()
    ]


def _build(name: str) -> nn.Module:
    from torchvision import models  # noqa: PLC0415 (optional)

    options: dict[str, Any] = {"weights_backbone": None} if name in _SEGMENTATION + _DETECTION else {}
    if name.endswith(("_fpn", "_fpn_v2")):
        options |= {"min_size": 128, "max_size": 128}
    if "rcnn" in name:
        # The heads look at each proposal, by default at a thousand.
        options |= {f"rpn_post_nms_top_n_{mode}": 20 for mode in ("train", "test")}
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def _scenes(name: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    target = {
        "boxes": torch.tensor([[8.0, 8.0, 60.0, 90.0], [30.0, 10.0, 100.0, 80.0]]),
        "labels": torch.tensor([1, 1]),
    }
    if name.startswith("mask"):
        target["masks"] = torch.randint(0, 2, (2, 128, 128), dtype=torch.uint8)
    if name.startswith("keypoint"):
        target["keypoints"] = torch.cat([torch.rand(2, 17, 2) * 50 + 30, torch.ones(2, 17, 1)], 2)
    return [torch.rand(3, 128, 128) for _ in range(2)], [target, target]


def _clips(name: str) -> tuple[Tensor]:
    # S3D ends in a pool of 2 x 7 x 7.
    return (torch.randn(1, 3, 16, 224, 224) if name == "s3d" else torch.randn(2, 3, 8, 64, 64),)
