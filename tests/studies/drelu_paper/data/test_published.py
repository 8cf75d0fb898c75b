from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from studies.drelu_paper.data import Split, load
from studies.drelu_paper.data.published import in_parts
from tests.support.optional import torchvision_or_skip

datasets = torchvision_or_skip("torchvision.datasets")

# Of each class: this many training and test images.
TRAINING, TEST = 20, 2


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST's files: a magic number with the dtype, 8 for bytes, the dimensions, and the values."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def images_of(labels: np.ndarray, *shape: int) -> np.ndarray:
    """Random bytes, but that the first pixel is the label."""
    images = np.random.RandomState(0).randint(256, size=(len(labels), *shape), dtype=np.uint8)
    images.reshape(len(labels), -1)[:, 0] = labels
    return images


def write_mnist(root: Path) -> Path:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, share in (("train", TRAINING), ("t10k", TEST)):
        labels = np.tile(np.arange(10, dtype=np.uint8), share)
        for name, array in (("images-idx3", images_of(labels, 28, 28)), ("labels-idx1", labels)):
            (folder / f"{part}-{name}-ubyte").write_bytes(idx(array))
    return folder


def write_cifar(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Python batches as published, whose MD5 sums torchvision is reported."""
    kind, classes, key = {
        "cifar10": (datasets.CIFAR10, 10, "labels"),
        "cifar100": (datasets.CIFAR100, 100, "fine_labels"),
    }[name]
    folder = root / kind.base_folder
    folder.mkdir()

    def write(file: str, content: dict) -> str:
        (folder / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    for attribute, share in (("train_list", TRAINING), ("test_list", TEST)):
        files = [file for file, _ in getattr(kind, attribute)]
        labels = np.tile(np.arange(classes), share)
        parts = zip(files, np.array_split(labels, len(files)), strict=True)
        sums = [
            [file, write(file, {"data": images_of(part, 3, 32, 32).reshape(-1, 3072), key: part.tolist()})]
            for file, part in parts
        ]
        monkeypatch.setattr(kind, attribute, sums)
    sum_of_names = write(kind.meta["filename"], {kind.meta["key"]: [f"class {i}" for i in range(classes)]})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sum_of_names})
    return folder


def test_mnist_from_idx_files(tmp_path):
    folder = write_mnist(tmp_path)
    before = sorted(folder.iterdir())
    dataset = load("mnist", tmp_path)
    assert (dataset.name, dataset.classes, dataset.shape) == ("mnist", 10, (1, 28, 28))
    for part, share in ((dataset.train, 18), (dataset.validation, 2), (dataset.test, TEST)):
        assert torch.bincount(part.y).tolist() == [share] * 10
        assert part.x.shape == (share * 10, 1, 28, 28)
        assert torch.equal(part.x[:, 0, 0, 0], part.y / 255)
        assert part.augmentation is None
    assert sorted(folder.iterdir()) == before


def test_mnist_rows_are_rows(tmp_path):
    write_mnist(tmp_path)
    expected = images_of(np.tile(np.arange(10, dtype=np.uint8), TEST), 28, 28)
    assert np.array_equal((load("mnist", tmp_path).test.x[:, 0] * 255).round().numpy(), expected)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_from_python_batches(tmp_path, monkeypatch, name, classes):
    write_cifar(tmp_path, name, monkeypatch)
    dataset = load(name, str(tmp_path))
    assert (dataset.name, dataset.classes, dataset.shape) == (name, classes, (3, 32, 32))
    for part, share in ((dataset.train, 18), (dataset.validation, 2), (dataset.test, TEST)):
        assert torch.bincount(part.y).tolist() == [share] * classes
        assert torch.equal(part.x[:, 0, 0, 0], part.y / 255)
        assert part.augmentation is not None
    labels = np.tile(np.arange(classes), TEST)
    assert np.array_equal((dataset.test.x * 255).round().numpy(), images_of(labels, 3, 32, 32))
    shuffled = dataset.train.batches(32, torch.Generator(), shuffle=True)
    (x, y) = next(shuffled)
    assert x.shape == (32, 3, 32, 32)
    # Cropped or mirrored: the pixel that is the label moves, but for one place of 162.
    assert (x[:, 0, 0, 0] == y / 255).float().mean() < 0.5


def test_no_image_is_in_two_parts(tmp_path):
    write_mnist(tmp_path)
    one, other = load("mnist", tmp_path), load("mnist", tmp_path)
    assert torch.equal(one.train.x, other.train.x)
    together = torch.cat([one.train.x, one.validation.x]).flatten(1)
    assert len(together.unique(dim=0)) == TRAINING * 10


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_missing_set_says_where_it_is_looked_for(tmp_path, name):
    with pytest.raises(
        FileNotFoundError, match=f"{name}: no whole data set in {tmp_path}; get it with .* download=True"
    ):
        load(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_default_folder_is_data_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "data")
    assert len(load("mnist").test) == TEST * 10


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train-images-idx3-ubyte", b"no idx", "mnist: not the published files in"),
        ("train-images-idx3-ubyte", idx(images_of(np.arange(9), 28, 28))[:-1], "mnist: not the published files in"),
        (
            "t10k-images-idx3-ubyte",
            idx(images_of(np.arange(20), 8, 8)),
            r"shape \(1, 8, 8\); expected \(1, 28",
        ),
        ("t10k-labels-idx1-ubyte", idx(np.arange(9, dtype=np.uint8)), r"labels: got shape \(9,\)"),
        ("t10k-labels-idx1-ubyte", idx(np.arange(20, dtype=np.uint8)), "test labels: got labels from 0 to 19; expec"),
    ],
)
def test_mnist_files_that_are_not_as_published(tmp_path, file, content, message):
    (write_mnist(tmp_path) / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load("mnist", tmp_path)


def test_cifar_file_of_another_content(tmp_path, monkeypatch):
    folder = write_cifar(tmp_path, "cifar10", monkeypatch)
    (folder / "data_batch_3").write_bytes(b"another")
    with pytest.raises(FileNotFoundError, match="cifar10: no whole data set in "):
        load("cifar10", tmp_path)


def test_class_that_is_too_small_for_a_split():
    images = torch.zeros(4, 1, 1, 1, dtype=torch.uint8)
    labels = torch.tensor([0, 0, 0, 1])
    with pytest.raises(ValueError, match=r"class 0; too few for a share of 0.1"):
        in_parts("few", 2, Split(images, labels), Split(images, labels), share=0.1, augmented=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("svhn",), "name: got 'svhn'; expected one of 'digits', 'mnist', 'cifar10', 'cifar100', 'tinyimagenet'"),
        (("digits", None, "x.npz"), "original_share: got None beside generated; expected both or neither"),
        (("digits", None, None, 0.3), "generated: got None beside original_share; expected both or neither"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(*arguments)
