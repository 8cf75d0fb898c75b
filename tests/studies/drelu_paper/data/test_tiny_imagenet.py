from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from studies.drelu_paper.data import load
from tests.support.optional import torchvision_or_skip

torchvision_or_skip()
Image = pytest.importorskip("PIL.Image")

NAMES = ("n02000001", "n01000003", "n01000002")
# Whole colors survive JPEG: by them an image is reported, by class and by part of the set.
COLORS = {"n01000002": (200, 30, 30), "n01000003": (30, 200, 30), "n02000001": (30, 30, 200)}
TRAINING, TEST = 10, 2


def write(folder: Path, file: str, color: tuple[int, int, int], size: int = 64) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), color, dtype=np.uint8)).save(folder / file, "JPEG")


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folders of the published archive, with three classes."""
    folder = tmp_path / "tiny-imagenet-200"
    lines = []
    for name in NAMES:
        for number in range(TRAINING):
            write(folder / "train" / name / "images", f"{name}_{number}.JPEG", COLORS[name])
        (folder / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t63\t63\n")
    for number in range(TEST * len(NAMES)):
        name = NAMES[number % len(NAMES)]
        write(folder / "val" / "images", f"val_{number}.JPEG", COLORS[name])
        lines.append(f"val_{number}.JPEG\t{name}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def test_parts(folder: Path):
    dataset = load("tinyimagenet", folder.parent)
    assert (dataset.name, dataset.classes, dataset.shape) == ("tinyimagenet", 3, (3, 64, 64))
    for part, share in ((dataset.train, 8), (dataset.validation, 2), (dataset.test, TEST)):
        assert torch.bincount(part.y).tolist() == [share] * 3
        x, y = part.first(len(part))
        assert x.shape == (share * 3, 3, 64, 64)
        # Classes count in the order of their names: red, green, blue.
        assert torch.equal(x.mean((2, 3)).argmax(1), y)
        assert part.augmentation is not None
    # In the order of the annotations, not of the file names or classes.
    assert dataset.test.y.tolist() == [2, 1, 0] * TEST


def test_gray_photographs_have_three_channels(folder: Path):
    path = folder / "train" / NAMES[0] / "images" / f"{NAMES[0]}_0.JPEG"
    Image.fromarray(np.full((64, 64), 77, dtype=np.uint8)).save(path, "JPEG")
    x = load("tinyimagenet", folder.parent).train.x
    validation = load("tinyimagenet", folder.parent).validation.x
    gray = (torch.cat([x, validation]) * 255).round() == 77
    assert int(gray.flatten(1).all(1).sum()) == 1


@pytest.mark.parametrize("path", ["train", "val/val_annotations.txt"])
def test_what_is_missing_is_named_with_the_address(folder: Path, path: str):
    (folder / path).rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"no {folder / path}; unpack http://cs231n") as caught:
        load("tinyimagenet", folder.parent)
    assert str(folder.parent) in str(caught.value)


def test_annotation_of_an_unknown_class(folder: Path):
    path = folder / "val" / "val_annotations.txt"
    path.write_text(path.read_text() + "val_9.JPEG\tn09\t0\t0\t1\t1\n")
    with pytest.raises(ValueError, match=r"line 7: got class 'n09'; expected a folder of .*train"):
        load("tinyimagenet", folder.parent)


def test_image_of_another_size(folder: Path):
    write(folder / "val" / "images", "val_0.JPEG", (0, 0, 0), size=32)
    with pytest.raises(ValueError, match=r"val_0.JPEG: got an image of shape \(3, 32, 32\); expected \(3, 64, 64\)"):
        load("tinyimagenet", folder.parent)


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_file_that_is_no_image(folder: Path, content: bytes):
    (folder / "val" / "images" / "val_0.JPEG").write_bytes(content)
    with pytest.raises(ValueError, match=r"val_0.JPEG: cannot be read as an image"):
        load("tinyimagenet", folder.parent)


def test_half_an_image(folder: Path):
    path = folder / "train" / NAMES[0] / "images" / f"{NAMES[0]}_0.JPEG"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{path}: cannot be read as an image"):
        load("tinyimagenet", folder.parent)
