"""The paper's networks, as torchvision writes them, and what is done to their activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 1000
AUXILIARY = 0.4  # weight of the loss of Inception's auxiliary head, as in its paper


@dataclass(frozen=True)
class Network:
    """A network without trained weights.

    Attributes:
        build: makes it, with torch's random state.
        image, batch: side of its square inputs in pixels, and their number, on a GPU.
        small_image, small_batch: on a CPU.
    """

    build: Callable[[], nn.Module]
    image: int = 224
    batch: int = 64
    small_image: int = 64
    small_batch: int = 4


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision import models  # noqa: PLC0415 (optional)

        model: nn.Module = getattr(models, name)(weights=None, num_classes=CLASSES, **options)
        return model

    return build


NETWORKS: dict[str, Network] = {
    "resnet50": Network(_torchvision("resnet50")),
    "mobilenet_v2": Network(_torchvision("mobilenet_v2")),
    # Without its own initialization, which is slow. Its auxiliary head takes no smaller images in training.
    "inception_v3": Network(
        _torchvision("inception_v3", init_weights=False), image=299, small_image=299, small_batch=2
    ),
    "resnet101": Network(_torchvision("resnet101")),
}


def loss_of(output: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """The mean cross entropy of the logits, and of an auxiliary head's where a network in train mode returns both."""
    logits, *auxiliary = output if isinstance(output, tuple) else (output,)
    loss = functional.cross_entropy(logits, labels)
    for more in auxiliary:
        loss = loss + AUXILIARY * functional.cross_entropy(more, labels)
    return loss


def data(
    batch: int, image: int, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format
) -> tuple[Tensor, Tensor]:
    """Random images, shape (batch, 3, image, image), and random labels."""
    generator = torch.Generator(device).manual_seed(1)
    images = torch.empty(batch, 3, image, image, device=device, memory_format=memory_format)
    return images.normal_(generator=generator), torch.randint(CLASSES, (batch,), generator=generator, device=device)
