from __future__ import annotations

import pytest
import torch

from studies.drelu_paper.data import CropAndFlip, Split, StoredPart


def numbered(n: int, *, dtype: torch.dtype = torch.uint8, seed: int = 0) -> StoredPart:
    """n images of 1x2x2 whose pixels are their number, and whose labels are the last digit of it."""
    numbers = torch.arange(n)
    images = numbers.reshape(n, 1, 1, 1).expand(n, 1, 2, 2)
    images = images.to(torch.uint8) if dtype == torch.uint8 else (images / 255).to(dtype)
    return StoredPart(images, numbers % 10, seed=seed)


def numbers(batches: object) -> list[list[int]]:
    return [(x[:, 0, 0, 0] * 255).round().long().tolist() for x, _ in batches]  # type: ignore[attr-defined]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batches_hold_every_sample_once_in_order(dtype):
    batches = list(numbered(10, dtype=dtype).batches(4))
    assert numbers(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for x, y in batches:
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert torch.equal(x, (y / 255).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2))
        assert x.is_contiguous()


def test_bytes_become_the_floats_of_a_division():
    part = StoredPart(torch.arange(256, dtype=torch.uint8).reshape(64, 1, 2, 2), torch.zeros(64, dtype=torch.int64))
    expected = (torch.arange(256, dtype=torch.float64) / 255).float()
    assert torch.equal(part.x.flatten(), expected)
    assert torch.equal(torch.cat([x for x, _ in part.batches(5)]).flatten(), expected)


def test_shuffling_is_torchs_permutation_of_the_generator():
    # Results of years may be compared: the demo's training draws its order this way.
    found = numbers(numbered(10).batches(4, generator(3), shuffle=True))
    order = torch.randperm(10, generator=generator(3)).tolist()
    assert found == [order[:4], order[4:8], order[8:]]


def test_generator_advances_with_each_epoch_when_the_batches_are_asked_for():
    part, source = numbered(10), generator()
    first, second = part.batches(10, source, shuffle=True), part.batches(10, source, shuffle=True)
    assert numbers(second) != numbers(first)


def test_epoch_gives_the_same_order_whatever_ran_before():
    part = numbered(40)
    epochs = [numbers(part.batches(8, shuffle=True, epoch=epoch)) for epoch in range(3)]
    assert numbers(numbered(40).batches(8, shuffle=True, epoch=2)) == epochs[2]
    assert epochs[0] != epochs[1] != epochs[2]
    # Not seed + epoch.
    assert numbers(numbered(40, seed=1).batches(8, shuffle=True, epoch=0)) not in epochs


def test_last_small_batch_is_dropped_on_demand_only():
    assert [len(y) for _, y in numbered(10).batches(4, drop_last=True)] == [4, 4]
    assert [len(y) for _, y in numbered(8).batches(4, drop_last=True)] == [4, 4]


def test_first_samples_as_they_are_stored():
    x, y = numbered(30).first(12)
    assert y.tolist() == [*range(10), 0, 1]
    assert numbers([(x, y)]) == [list(range(12))]


def test_balanced_first_samples_keep_their_order():
    labels = torch.tensor([2, 0, 0, 1, 0, 1, 1, 2, 2])
    part = StoredPart(torch.arange(9, dtype=torch.uint8).reshape(9, 1, 1, 1), labels)
    split = part.first(6, balanced=True)
    assert numbers([split]) == [[0, 1, 2, 3, 5, 7]]
    assert split.y.tolist() == [2, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("balanced", [False, True])
def test_seeded_choice(balanced):
    part = numbered(200)
    one, same, other = (part.first(50, balanced, seed) for seed in (1, 1, 2))
    assert torch.equal(one.x, same.x)
    assert not torch.equal(one.x, other.x)
    found = numbers([one])[0]
    assert len(set(found)) == 50
    assert [number % 10 for number in found] == one.y.tolist()
    assert (torch.bincount(one.y).tolist() == [5] * 10) is balanced


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda part: part.batches(0), "batch_size: got 0; expected at least 1"),
        (lambda part: part.batches(4, shuffle=True), "generator: got None; a random order"),
        (lambda part: part.batches(4, generator(), epoch=0), "epoch: got one beside a generator"),
        (lambda part: part.batches(4, epoch=-1), "epoch: got -1; expected at least 0"),
        (lambda part: part.batches(4, epoch=0, augment=True), "augment: got True; these images have no augmentation"),
        (
            lambda part: part.batches(64, drop_last=True),
            "drop_last: got True; 20 samples are fewer than one batch's 64",
        ),
        (lambda part: part.first(0), "n: got 0; expected 1 to 20"),
        (lambda part: part.first(21), "n: got 21; expected 1 to 20"),
        (lambda part: part.first(15, balanced=True), "n: got 15; expected a multiple of the number of classes, 10"),
    ],
)
def test_impossible_requests_fail_at_the_call(call, message):
    with pytest.raises(ValueError, match=message):
        call(numbered(20))


def test_balanced_choice_needs_enough_of_each_class():
    part = StoredPart(torch.zeros(4, 1, 1, 1), torch.tensor([0, 0, 0, 1]))
    for seed in (None, 0):
        with pytest.raises(ValueError, match="n: got 4; class 1 has only 1 samples"):
            part.first(4, balanced=True, seed=seed)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), r"images: got shape \(3, 4\), torch.float32"),
        (torch.zeros(3, 1, 2, 2).double(), torch.zeros(3, dtype=torch.int64), "images: .* torch.float64; expected"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(2, dtype=torch.int64), r"labels: got shape \(2,\)"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(3), "labels: .* torch.float32; expected"),
    ],
)
def test_stored_part_checks_its_tensors(images, labels, message):
    with pytest.raises(ValueError, match=message):
        StoredPart(images, labels)


def test_crop_and_flip_of_each_kind():
    x = torch.arange(1.0, 13.0).reshape(1, 1, 3, 4).expand(3, 1, 3, 4)
    # The place of the unmoved crop is the padding itself.
    same, moved, mirrored = CropAndFlip(padding=1).apply(x, torch.tensor([[1, 1, 0], [0, 2, 0], [1, 1, 1]]))
    assert torch.equal(same, x[0])
    assert moved[0].tolist() == [[0, 0, 0, 0], [2, 3, 4, 0], [6, 7, 8, 0]]
    assert torch.equal(mirrored, x[0].flip(2))


def test_crop_and_flip_are_drawn_over_all_places():
    changes = CropAndFlip(padding=2).draw(2000, generator())
    assert [sorted(set(column.tolist())) for column in changes.T] == [list(range(5)), list(range(5)), [0, 1]]


def test_augmented_batches_have_the_order_of_plain_ones():
    images = torch.randint(256, (12, 3, 8, 8), generator=generator(), dtype=torch.uint8)
    part = StoredPart(images, torch.arange(12), CropAndFlip())
    (alone,) = part.batches(12, shuffle=True, epoch=0, augment=True)
    parts = [x for x, _ in part.batches(5, shuffle=True, epoch=0, augment=True)]
    assert torch.equal(torch.cat(parts), alone.x)
    (plain,) = part.batches(12, shuffle=True, epoch=0)
    assert isinstance(plain, Split)
    assert torch.equal(plain.y, alone.y)
    assert not torch.equal(plain.x, alone.x)
    assert alone.x.is_contiguous()
