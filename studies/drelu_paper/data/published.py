"""MNIST, CIFAR10 and CIFAR100, read by torchvision from the files in which they are published."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studies.drelu_paper.data.augmentation import CropAndFlip
from studies.drelu_paper.data.files import check_labels, require
from studies.drelu_paper.data.parts import Dataset, StoredPart
from studies.drelu_paper.data.splitting import SPLIT_SEED, stratified_share

# Of the training images, with seed 123 and each class's share, for all three sets: the paper names no share for them.
VALIDATION_SHARE = 0.1


def mnist(root: Path, seed: int = 0, download: bool = False) -> Dataset:
    """The 60,000 and 10,000 digits, from the four idx files in ``root/MNIST/raw``, with or without ``.gz``.

    Args:
        root: the folder that torchvision calls so.
        seed: of the orders of the epochs.
        download: let torchvision download what is missing.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not as published.
        ModuleNotFoundError: torchvision is not installed.
    """
    from torchvision import datasets  # noqa: PLC0415 (slow to import)
    from torchvision.datasets.mnist import read_image_file, read_label_file  # noqa: PLC0415

    if download:
        datasets.MNIST(root, download=True)
    folder = root / "MNIST" / "raw"
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    paths = [_packed_or_not(folder / name) for name in names]
    require("mnist", paths, "put the four idx files of MNIST there, packed (.gz) or not, or load with download=True")
    parts = []
    for images_path, labels_path in (paths[:2], paths[2:]):
        images, labels = _read_idx(images_path, read_image_file), _read_idx(labels_path, read_label_file)
        if images.shape[1:] != (28, 28):
            raise ValueError(f"{images_path}: got images of shape {tuple(images.shape[1:])}; expected (28, 28)")
        if len(images) != len(labels):
            raise ValueError(f"{labels_path}: got {len(labels)} labels for {len(images)} images")
        parts.append((images[:, None], labels))
    return in_parts("mnist", 10, *parts[0], *parts[1], share=VALIDATION_SHARE, augmentation=None, seed=seed)


def cifar(name: str, root: Path, seed: int = 0, download: bool = False) -> Dataset:
    """The 50,000 and 10,000 photographs, from the batches in ``root/cifar-10-batches-py`` or ``cifar-100-python``.

    Args:
        name: ``"cifar10"`` or ``"cifar100"`` (its fine labels).
        root, seed, download: as in ``mnist``.

    Raises:
        FileNotFoundError, ModuleNotFoundError: as ``mnist``.
        ValueError: a file is not the published one, by its MD5 sum.
    """
    from torchvision import datasets  # noqa: PLC0415 (slow to import)

    kind, classes = {"cifar10": (datasets.CIFAR10, 10), "cifar100": (datasets.CIFAR100, 100)}[name]
    folder = root / kind.base_folder
    if not download:
        names = [file for file, _ in (*kind.train_list, *kind.test_list)] + [kind.meta["filename"]]
        require(name, [folder / file for file in names], f"unpack {kind.url} in {root}, or load with download=True")
    try:
        read: list[Any] = [kind(root, train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        raise ValueError(f"{name}: the files in {folder} are not those published ({error})") from error
    first, second = (
        (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)) for part in read
    )
    return in_parts(name, classes, *first, *second, share=VALIDATION_SHARE, augmentation=CropAndFlip(), seed=seed)


def in_parts(
    name: str,
    classes: int,
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    *,
    share: float,
    augmentation: CropAndFlip | None,
    seed: int,
) -> Dataset:
    """A data set whose validation part is this share of the training images, the same in every run.

    Raises:
        ValueError: a label is out of range, or a class is too small for the split.
    """
    check_labels(f"{name}, training labels", labels, classes)
    check_labels(f"{name}, test labels", test_labels, classes)
    train, validation = (torch.from_numpy(part) for part in stratified_share(labels.numpy(), share, SPLIT_SEED))
    channels, height, width = images.shape[1:]
    return Dataset(
        name,
        classes,
        (channels, height, width),
        train=StoredPart(images[train], labels[train], augmentation, seed),
        validation=StoredPart(images[validation], labels[validation], augmentation, seed),
        test=StoredPart(test_images, test_labels, augmentation, seed),
    )


def _packed_or_not(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.exists() and not path.exists() else path


def _read_idx(path: Path, read: Callable[[str], Tensor]) -> Tensor:
    try:
        if path.suffix != ".gz":
            return read(str(path))
        # torchvision reads unpacked files only, and the user's folder is not ours to write to.
        with gzip.open(path) as packed, tempfile.NamedTemporaryFile() as unpacked:
            shutil.copyfileobj(packed, unpacked)
            unpacked.flush()
            return read(unpacked.name)
    except Exception as error:
        raise ValueError(f"{path}: not an idx file as MNIST's ({type(error).__name__}: {error})") from error
