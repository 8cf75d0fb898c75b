from __future__ import annotations

import numpy as np
import pytest

from studies.drelu_paper.data import stratified_share, stratified_split


def test_parts_are_disjoint_and_shuffled():
    labels = np.repeat(np.arange(4), 25)
    parts = stratified_split(labels, (40, 20, 12), seed=1)
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together) == 72
    assert [np.bincount(labels[part]).tolist() for part in parts] == [[10] * 4, [5] * 4, [3] * 4]
    assert not np.array_equal(parts[0], np.sort(parts[0]))
    assert not np.array_equal(labels[parts[0]], np.sort(labels[parts[0]]))


def test_another_seed_gives_another_split():
    labels = np.repeat(np.arange(4), 25)
    assert not np.array_equal(stratified_split(labels, (40,), 1)[0], stratified_split(labels, (40,), 2)[0])


@pytest.mark.parametrize(
    ("labels", "sizes", "message"),
    [
        (np.array([0, 1, 0, 1]), (3,), "sizes: got 3; expected a positive multiple of the number of classes, 2"),
        (np.array([0, 1, 0, 1]), (0,), "sizes: got 0; expected a positive multiple"),
        (np.array([0, 0, 0, 1]), (2, 2), "labels: got 1 items of class 1; sizes need 2"),
    ],
)
def test_impossible_splits(labels, sizes, message):
    with pytest.raises(ValueError, match=message):
        stratified_split(labels, sizes, seed=0)


def test_share_takes_all_items_and_its_share_of_each_class():
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(3), (10, 25, 67)))
    first, second = stratified_share(labels, 0.1, seed=1)
    assert sorted([*first, *second]) == list(range(len(labels)))
    assert np.bincount(labels[second]).tolist() == [1, 2, 7]
    assert not np.array_equal(labels[first], np.sort(labels[first]))


def test_share_is_a_function_of_the_seed():
    labels = np.repeat(np.arange(4), 25)
    one, same, other = (stratified_share(labels, 0.2, seed)[1] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("labels", "share", "message"),
    [
        (np.zeros(4, dtype=int), 0.0, "share: got 0.0; expected a number above 0 and below 1"),
        (np.zeros(4, dtype=int), 1.0, "share: got 1.0; expected a number above 0"),
        (np.repeat([0, 1], (10, 4)), 0.1, "labels: got 4 items of class 1; too few for a share of 0.1"),
    ],
)
def test_impossible_shares(labels, share, message):
    with pytest.raises(ValueError, match=message):
        stratified_share(labels, share, seed=0)
