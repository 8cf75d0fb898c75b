"""MNIST, CIFAR10 and CIFAR100, read by torchvision from the files in which they are published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from studies.drelu_paper.data.parts import Dataset, Part, Split, check_labels
from studies.drelu_paper.data.splitting import SPLIT_SEED, stratified_share

# torchvision's class, and the number of classes.
PUBLISHED = {"mnist": ("MNIST", 10), "cifar10": ("CIFAR10", 10), "cifar100": ("CIFAR100", 100)}
# Of the training images, with seed 123 and each class's share, for all three sets: the paper names no share for them.
VALIDATION_SHARE = 0.1


def published(name: str, root: Path) -> Dataset:
    """A data set from the files that torchvision reads: unpacked, in the folders that it names.

    Raises:
        FileNotFoundError: torchvision finds no files in this root folder, or other ones than those published.
        ValueError: the files are not as published.
    """
    from torchvision import datasets  # noqa: PLC0415 (slow to import)

    kind, classes = PUBLISHED[name]
    try:
        train, test = (getattr(datasets, kind)(root, train=part) for part in (True, False))
    except Exception as error:
        remedy = f"get it with torchvision.datasets.{kind}({str(root)!r}, download=True)"
        if "Dataset not found" in str(error):
            raise FileNotFoundError(f"{name}: no whole data set in {root}; {remedy}") from error
        raise ValueError(f"{name}: not the published files in {root} ({error}); {remedy}") from error
    parts = [Split(_images(part.data), torch.as_tensor(part.targets)) for part in (train, test)]
    return in_parts(name, classes, *parts, share=VALIDATION_SHARE, augmented=name != "mnist")


def _images(stored: Tensor | np.ndarray) -> Tensor:
    """As bytes of shape (N, C, H, W)."""
    images = torch.as_tensor(stored)
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def in_parts(name: str, classes: int, train: Split, test: Split, *, share: float, augmented: bool) -> Dataset:
    """A data set whose validation part is this share of the training images, the same in every run.

    Augmentation is the usual one of small photographs: a random crop of the padded image, and a random flip.

    Raises:
        ValueError: a label is out of range, or a class is too small for the split.
    """
    from torchvision.transforms import v2 as transforms  # noqa: PLC0415 (slow to import)

    check_labels(f"{name}, training labels", train.y, classes)
    check_labels(f"{name}, test labels", test.y, classes)
    if test.x.shape[1:] != train.x.shape[1:]:
        shapes = tuple(test.x.shape[1:]), tuple(train.x.shape[1:])
        raise ValueError(f"{name}: got test images of shape {shapes[0]}; expected {shapes[1]}")
    chosen = [torch.from_numpy(part) for part in stratified_share(train.y.numpy(), share, SPLIT_SEED)]
    channels, height, width = train.x.shape[1:]
    crop = transforms.RandomCrop((height, width), padding=4)
    augmentation = transforms.Compose([crop, transforms.RandomHorizontalFlip()]) if augmented else None
    own, validation = (Part(train.x[part], train.y[part], augmentation) for part in chosen)
    return Dataset(name, classes, (channels, height, width), own, validation, Part(test.x, test.y, augmentation))
