"""TinyImagenet: 200 classes of 64x64 photographs, as the folders in which it is published."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from studies.drelu_paper.data.parts import Dataset, Split
from studies.drelu_paper.data.published import in_parts

ADDRESS = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
SHAPE = (3, 64, 64)
# Section 5.1 of the paper.
VALIDATION_SHARE = 0.2


def tiny_imagenet(root: Path) -> Dataset:
    """80 % and 20 % of the 100,000 training images; the published validation set, 10,000 images, is the test part.

    The published test set has no labels. Every image is decoded once, on all cores: as bytes they take 1.35 GB, and
    to decode them again in every epoch would take longer than a small network's step. The folder ``tiny-imagenet-200``
    has ``train/<class>/images/*.JPEG``, ``val/val_annotations.txt`` and ``val/images``; classes are numbered in the
    order of their names.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: an annotation names another class; or a file is no 64x64 image.
    """
    from torchvision.datasets import ImageFolder  # noqa: PLC0415 (slow to import)

    remedy = f"unpack {ADDRESS} in {root}"
    folder = root / "tiny-imagenet-200"
    annotations = folder / "val" / "val_annotations.txt"
    for path in (folder / "train", annotations):
        if not path.exists():
            raise FileNotFoundError(f"tinyimagenet: no {path}; {remedy}")
    training = ImageFolder(folder / "train")
    paths, labels = [], []
    for number, line in enumerate(annotations.read_text().splitlines(), 1):
        file, name, *_ = (*line.split("\t"), "")
        if name not in training.class_to_idx:
            raise ValueError(
                f"{annotations}, line {number}: got class {name!r}; expected a folder of {folder / 'train'}"
            )
        paths.append(folder / "val" / "images" / file)
        labels.append(training.class_to_idx[name])
    train = Split(_decoded([Path(path) for path, _ in training.samples], "training"), torch.tensor(training.targets))
    test = Split(_decoded(paths, "test"), torch.tensor(labels))
    return in_parts("tinyimagenet", len(training.classes), train, test, share=VALIDATION_SHARE, augmented=True)


def _decoded(paths: Sequence[Path], part: str) -> Tensor:
    from torchvision.io import ImageReadMode, decode_image  # noqa: PLC0415

    images = torch.empty(len(paths), *SHAPE, dtype=torch.uint8)

    def decode(index: int) -> None:
        path = paths[index]
        try:
            # Some of the photographs are gray.
            image = decode_image(str(path), ImageReadMode.RGB)
        except RuntimeError as error:
            raise ValueError(f"{path}: cannot be read as an image ({error})") from error
        if tuple(image.shape) != SHAPE:
            raise ValueError(f"{path}: got an image of shape {tuple(image.shape)}; expected {SHAPE}")
        images[index] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(decode, range(len(paths)))
        list(tqdm(done, total=len(paths), desc=f"tinyimagenet, {part}", dynamic_ncols=True))
    return images
