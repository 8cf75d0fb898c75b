from __future__ import annotations

import pytest
import torch

from studies.drelu_paper.data import CropAndFlip, Part


def numbered(n: int, dtype: torch.dtype = torch.uint8) -> Part:
    """n images of 1x2x2 whose pixels are their number, and whose labels are the last digit of it."""
    numbers = torch.arange(n)
    images = numbers.reshape(n, 1, 1, 1).expand(n, 1, 2, 2)
    return Part(images.to(torch.uint8) if dtype == torch.uint8 else (images / 255).to(dtype), numbers % 10)


def numbers(batches: object) -> list[list[int]]:
    return [(x[:, 0, 0, 0] * 255).round().long().tolist() for x, _ in batches]  # type: ignore[attr-defined]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batches_hold_every_sample_once_in_order(dtype):
    batches = list(numbered(10, dtype).batches(4))
    assert numbers(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for x, y in batches:
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert torch.equal(x, (y / 255).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2))
        assert x.is_contiguous()


def test_bytes_become_the_floats_of_a_division():
    part = Part(torch.arange(256, dtype=torch.uint8).reshape(64, 1, 2, 2), torch.zeros(64, dtype=torch.int64))
    expected = (torch.arange(256, dtype=torch.float64) / 255).float()
    assert torch.equal(part.x.flatten(), expected)
    assert torch.equal(torch.cat([x for x, _ in part.batches(5)]).flatten(), expected)


def test_shuffling_is_torchs_permutation_of_the_generator():
    # Committed results were trained in this order.
    found = numbers(numbered(10).batches(4, generator(3), shuffle=True))
    order = torch.randperm(10, generator=generator(3)).tolist()
    assert found == [order[:4], order[4:8], order[8:]]


def test_first_samples_and_a_limited_part():
    x, y = numbered(30).first(12)
    assert y.tolist() == [*range(10), 0, 1]
    assert numbers([(x, y)]) == [list(range(12))]
    (seven,) = numbers(numbered(30).limited(7).batches(9, generator(), shuffle=True))
    assert sorted(seven) == list(range(7))
    assert len(numbered(3).limited(7)) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda part: list(part.batches(4, shuffle=True)), "generator: got None; a random order needs one"),
        (lambda part: part.first(0), "n: got 0; expected 1 to 20"),
        (lambda part: part.first(21), "n: got 21; expected 1 to 20"),
    ],
)
def test_impossible_requests(call, message):
    with pytest.raises(ValueError, match=message):
        call(numbered(20))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), r"images: got shape \(3, 4\), torch.float32"),
        (torch.zeros(3, 1, 2, 2).double(), torch.zeros(3, dtype=torch.int64), "images: .* torch.float64; expected"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(2, dtype=torch.int64), r"labels: got shape \(2,\)"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(3), "labels: .* torch.float32; expected"),
    ],
)
def test_a_part_checks_its_tensors(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Part(images, labels)


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


def test_shuffled_batches_are_augmented_in_the_order_of_plain_ones():
    images = torch.randint(256, (12, 3, 8, 8), generator=generator(), dtype=torch.uint8)
    part, plain = Part(images, torch.arange(12), CropAndFlip()), Part(images, torch.arange(12))
    (alone,) = part.batches(12, generator(), shuffle=True)
    assert torch.equal(torch.cat([x for x, _ in part.batches(5, generator(), shuffle=True)]), alone.x)
    (unchanged,) = plain.batches(12, generator(), shuffle=True)
    assert torch.equal(unchanged.y, alone.y)
    assert not torch.equal(unchanged.x, alone.x)
    assert alone.x.is_contiguous()
    assert torch.equal(next(part.batches(12)).x, part.x)
