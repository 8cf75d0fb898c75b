"""The paper's shallow convolutional network; its sizes are those of the study in front of this project."""

from __future__ import annotations

from torch import nn

CHANNELS = (16, 32)


def body(shape: tuple[int, int, int]) -> tuple[nn.Sequential, int]:
    """Two 3x3 convolutions with ReLU, each followed by 2x2 max pooling, for images of this shape (C, H, W).

    Returns:
        The layers, which give (N, features), and the number of features.

    Raises:
        ValueError: the images are smaller than 4x4.
    """
    channels, height, width = shape
    if min(height, width) < 4:
        raise ValueError(f"shape: got {shape}; two poolings need images of at least 4x4")
    first, second = CHANNELS
    layers = nn.Sequential(
        nn.Conv2d(channels, first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    return layers, second * (height // 4) * (width // 4)
