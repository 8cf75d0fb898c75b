"""TinyImagenet: 200 classes of 64x64 photographs, as the folders in which it is published."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from studies.drelu_paper.data.augmentation import CropAndFlip
from studies.drelu_paper.data.files import require
from studies.drelu_paper.data.parts import Dataset
from studies.drelu_paper.data.published import in_parts

ADDRESS = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
SHAPE = (3, 64, 64)
# Section 5.1 of the paper.
VALIDATION_SHARE = 0.2


def tiny_imagenet(root: Path, seed: int = 0, download: bool = False) -> Dataset:
    """80 % and 20 % of the 100,000 training images; the published validation set, 10,000 images, is the test part.

    The published test set has no labels. Every image is decoded once, on all cores: as bytes they take 1.35 GB, and
    to decode them again in every epoch would take longer than a small network's step.

    Args:
        root: the folder with ``tiny-imagenet-200``, which has ``wnids.txt``, ``train/<class>/images/*.JPEG``,
            ``val/val_annotations.txt`` and ``val/images``. Classes are numbered in the order of their names.
        seed: of the orders of the epochs.
        download: not offered; torchvision does not know this set.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: download is asked for; the folders of classes are not those of ``wnids.txt``; an annotation names
            another class; or a file is no 64x64 image.
        ModuleNotFoundError: torchvision is not installed.
    """
    from torchvision.datasets import ImageFolder  # noqa: PLC0415 (slow to import)

    remedy = f"unpack {ADDRESS} in {root}"
    if download:
        raise ValueError(f"download: got True; tinyimagenet is not downloaded here: {remedy}")
    folder = root / "tiny-imagenet-200"
    names, annotations, pictures = folder / "wnids.txt", folder / "val" / "val_annotations.txt", folder / "val/images"
    require("tinyimagenet", [names, folder / "train", annotations, pictures], remedy)
    training = ImageFolder(folder / "train")
    expected = sorted(names.read_text().split())
    if training.classes != expected:
        unlike = sorted(set(training.classes) ^ set(expected))
        raise ValueError(f"{folder / 'train'}: its folders are not the classes of wnids.txt; unlike: {unlike[:5]}")
    paths, labels = _annotated(annotations, pictures, training.class_to_idx)
    require("tinyimagenet", paths, remedy)
    return in_parts(
        "tinyimagenet",
        len(expected),
        _decoded([Path(path) for path, _ in training.samples], "tinyimagenet, training"),
        torch.tensor(training.targets),
        _decoded(paths, "tinyimagenet, test"),
        torch.tensor(labels),
        share=VALIDATION_SHARE,
        augmentation=CropAndFlip(),
        seed=seed,
    )


def _annotated(annotations: Path, pictures: Path, numbers: dict[str, int]) -> tuple[list[Path], list[int]]:
    """The images of the published validation set and their classes; each line is a file, a class, and a box."""
    paths, labels = [], []
    for number, line in enumerate(annotations.read_text().splitlines(), 1):
        file, name, *_ = (*line.split("\t"), "")
        if name not in numbers:
            raise ValueError(f"{annotations}, line {number}: got class {name!r}, which is none of wnids.txt")
        paths.append(pictures / file)
        labels.append(numbers[name])
    return paths, labels


def _decoded(paths: Sequence[Path], description: str) -> Tensor:
    from torchvision.datasets.folder import default_loader  # noqa: PLC0415
    from torchvision.transforms.functional import pil_to_tensor  # noqa: PLC0415

    images = torch.empty(len(paths), *SHAPE, dtype=torch.uint8)

    def decode(index: int) -> None:
        try:
            # Some of the photographs are gray; the loader makes RGB of them.
            image = pil_to_tensor(default_loader(str(paths[index])))
        except OSError as error:
            raise ValueError(f"{paths[index]}: cannot be read as an image ({error})") from error
        if tuple(image.shape) != SHAPE:
            raise ValueError(f"{paths[index]}: got an image of shape {tuple(image.shape)}; expected {SHAPE}")
        images[index] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in tqdm(pool.map(decode, range(len(paths))), total=len(paths), desc=description, dynamic_ncols=True):
            pass
    return images
