from __future__ import annotations

import pytest
import torch

from studies.drelu_paper.data import Part


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


def test_shuffled_batches_are_augmented_one_by_one_in_the_order_of_plain_ones():
    images = torch.randint(256, (12, 3, 8, 8), generator=generator(), dtype=torch.uint8)

    def noisy(image: torch.Tensor) -> torch.Tensor:
        return image + torch.rand(())

    part, plain = Part(images, torch.arange(12), noisy), Part(images, torch.arange(12))
    before = torch.random.get_rng_state()
    found, again = (list(part.batches(5, generator(), shuffle=True)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    unchanged = torch.cat([x for x, _ in plain.batches(5, generator(), shuffle=True)])
    added = torch.cat([x for x, _ in found]) - unchanged
    assert len(added.flatten(1).mean(1).unique()) == 12
    assert torch.cat([y for _, y in found]).tolist() == torch.randperm(12, generator=generator()).tolist()
    assert all(torch.equal(one.x, other.x) for one, other in zip(found, again, strict=True))
    assert torch.equal(next(part.batches(12)).x, part.x)
