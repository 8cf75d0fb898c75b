from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from studies.drelu_paper.data import GeneratedImages, MixedPart, Part, load
from studies.drelu_paper.training.parallel import Processes

SHAPE = (3, 2, 4)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of(n: int) -> np.ndarray:
    return np.random.RandomState(0).randint(256, size=(n, 2, 4, 3), dtype=np.uint8)


def write(path: Path, compressed: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def numbered(folder: Path, original: int, generated: int, share: float) -> MixedPart:
    """Originals have labels 0 to 999, generated images those from 1000 on: no two samples have the same."""
    part = Part(torch.full((original, *SHAPE), 1.0), torch.arange(original))
    labels = np.arange(1000, 1000 + generated)
    path = write(folder / "generated.npz", image=np.zeros((generated, 2, 4, 3), np.uint8), label=labels)
    return MixedPart(part, GeneratedImages(path, 10_000, SHAPE), share)


def labels_of(batches: Any) -> list[list[int]]:
    return [y.tolist() for _, y in batches]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
def test_images_and_labels_are_read(tmp_path, compressed, dtype):
    images, labels = images_of(7), (np.arange(7) % 3).astype(dtype)
    generated = GeneratedImages(write(tmp_path / "g.npz", compressed, image=images, label=labels), 3, SHAPE)
    assert len(generated.y) == 7
    x, y = generated.read(torch.tensor([5, 0, 5]))
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert np.array_equal((x * 255).round().numpy(), images[[5, 0, 5]].transpose(0, 3, 1, 2))
    assert y.dtype == torch.int64
    assert y.tolist() == [2, 0, 2]
    assert isinstance(generated.images, np.memmap) is not compressed


def test_order_of_the_arrays_and_memory_layout_do_not_matter(tmp_path):
    images = np.asfortranarray(images_of(7))
    path = write(tmp_path / "g.npz", label=np.zeros(7, int), extra=np.zeros(3), image=images)
    x, _ = GeneratedImages(path, 1, SHAPE).read(torch.arange(7))
    assert np.array_equal((x * 255).round().numpy(), images.transpose(0, 3, 1, 2))


def test_file_is_left_as_it_is(tmp_path):
    path = write(tmp_path / "g.npz", image=images_of(7), label=np.zeros(7, int))
    before = path.read_bytes()
    x, _ = GeneratedImages(path, 1, SHAPE).read(torch.arange(7))
    x.zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize(("share", "originals"), [(0.3, 30), (0.2, 20), (0.125, 12), (0.0, 0), (1.0, 100)])
def test_epoch_has_the_stated_share_and_the_size_of_the_original(tmp_path, share, originals):
    mixed = numbered(tmp_path, 100, 500, share)
    assert len(mixed) == 100
    drawn = list(chain(*labels_of(mixed.batches(16, generator(0), shuffle=True))))
    assert len(drawn) == len(set(drawn)) == 100
    assert sum(label < 1000 for label in drawn) == originals


def test_samples_are_drawn_at_random_from_both_sets(tmp_path):
    mixed = numbered(tmp_path, 100, 500, 0.3)
    epochs = [set(chain(*labels_of(mixed.batches(16, generator(epoch), shuffle=True)))) for epoch in range(60)]
    assert set.union(*epochs) == {*range(100), *range(1000, 1500)}


@pytest.mark.parametrize("world", [1, 2, 5])
@pytest.mark.parametrize("share", [0.2, 0.3, 0.5])
def test_every_batch_of_every_process_has_its_share(tmp_path, share, world):
    # With a regular mixture, every second sample of a share of 0.5 is original: a process that took every second one
    # would see one kind only.
    for x, y in numbered(tmp_path, 100, 500, share).batches(20, generator(0), shuffle=True):
        for rank in range(world):
            _, labels, _ = Processes(rank, world).share(x, y, torch.device("cpu"))
            assert abs(int((labels < 1000).sum()) - share * len(labels)) < 1


def test_kinds_have_their_own_images(tmp_path):
    for x, y in numbered(tmp_path, 100, 500, 0.5).batches(7, generator(0), shuffle=True):
        assert x.dtype == torch.float32
        assert x.shape[1:] == SHAPE
        assert torch.equal(x.flatten(1).mean(1), (y < 1000).float())


def test_the_generator_decides_the_order(tmp_path):
    mixed = numbered(tmp_path, 40, 90, 0.3)
    one, same, other = (labels_of(mixed.batches(8, generator(seed), shuffle=True)) for seed in (1, 1, 2))
    assert one == same != other


def test_small_generated_set_is_gone_through_again(tmp_path):
    drawn = list(chain(*labels_of(numbered(tmp_path, 100, 32, 0.3).batches(10, generator(0), shuffle=True))))
    counts = [drawn.count(label) for label in range(1000, 1032)]
    assert sum(counts) == 70
    assert set(counts) == {2, 3}


def test_first_and_whole_are_the_originals(tmp_path):
    mixed = numbered(tmp_path, 100, 500, 0.3)
    assert mixed.first(5).y.tolist() == list(range(5))
    assert torch.equal(mixed.y, torch.arange(100))
    assert mixed.x.shape == (100, *SHAPE)


def test_mixture_must_be_shuffled(tmp_path):
    with pytest.raises(ValueError, match="shuffle: got False; a mixture is drawn anew for each epoch"):
        list(numbered(tmp_path, 100, 500, 0.3).batches(10))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_share_out_of_range(tmp_path, share):
    with pytest.raises(ValueError, match=f"original_share: got {share}; expected 0 to 1"):
        numbered(tmp_path, 100, 500, share)


def test_digits_with_generated_ones(tmp_path):
    path = write(tmp_path / "g.npz", image=np.full((50, 28, 28, 1), 255, np.uint8), label=np.arange(50) % 10)
    dataset = load("digits", generated=path, original_share=0.3)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (3500, 500, 1000)
    whites = [int((x == 1).flatten(1).all(1).sum()) for x, _ in dataset.train.batches(100, generator(0), shuffle=True)]
    assert whites == [70] * 35
    assert not isinstance(dataset.validation, MixedPart)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": images_of(3)}, "lacks label.npy; expected arrays image and label"),
        ({"images": images_of(3), "label": np.zeros(3, int)}, "lacks image.npy; expected"),
        (
            {"image": images_of(3).astype(np.float32), "label": np.zeros(3, int)},
            r"has image float32 \(3, 2, 4, 3\)",
        ),
        ({"image": images_of(3).transpose(0, 3, 1, 2), "label": np.zeros(3, int)}, r"expected uint8 \(N, 2, 4, 3\)"),
        ({"image": images_of(3)[0], "label": np.zeros(3, int)}, r"has image uint8 \(2, 4, 3\); expected"),
        ({"image": images_of(3), "label": np.zeros(3)}, r"has label float64 \(3,\); expected integers \(3,\)"),
        ({"image": images_of(3), "label": np.zeros(2, int)}, r"has label int64 \(2,\); expected integers \(3,\)"),
        ({"image": images_of(3), "label": np.array([0, 1, 10])}, "got labels from 0 to 10; expected 0 to 9"),
        ({"image": images_of(3), "label": np.array([0, -1, 1])}, "got labels from -1 to 1; expected 0 to 9"),
        ({"image": images_of(0), "label": np.zeros(0, int)}, "got no samples; expected at least one"),
        ({"image": np.array([None]), "label": np.zeros(1, int)}, "is not read as an .npz file of arrays"),
    ],
)
def test_files_of_another_form(tmp_path, arrays, message):
    path = write(tmp_path / "g.npz", **arrays)
    with pytest.raises(ValueError, match=f"generated: {path}.* ?{message}"):
        GeneratedImages(path, 10, SHAPE)


def test_file_that_is_no_archive(tmp_path):
    path = tmp_path / "g.npz"
    with path.open("wb") as file:
        np.save(file, images_of(3))
    with pytest.raises(ValueError, match=f"generated: {path} is not read as an .npz file"):
        GeneratedImages(path, 10, SHAPE)


def test_missing_file_says_what_it_should_be(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"generated: no .*g.npz; expected an .npz file with arrays image"):
        load("digits", generated=tmp_path / "g.npz", original_share=0.3)
