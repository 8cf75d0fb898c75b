"""Generated images, and a training part that mixes them with the original ones."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from studies.drelu_paper.data.parts import Part, Split, as_float, check_labels


class GeneratedImages:
    """An ``.npz`` file with the arrays ``image``, uint8 (N, H, W, C), and ``label``, integers (N,).

    The EDM sets of Wang et al. (Better Diffusion Models Further Improve Adversarial Training, ICML 2023) have this
    form. Images of an uncompressed file (``numpy.savez``) are mapped, not read: the largest of those sets take more
    than 100 GB. Classes and shape, (C, H, W), are those of the original data.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no ``.npz`` file, lacks an array, or an array is not as above.
    """

    def __init__(self, path: Path, classes: int, shape: tuple[int, int, int]) -> None:
        if not path.is_file():
            raise FileNotFoundError(
                f"generated: no {path}; expected an .npz file with arrays image, uint8 (N, H, W, C), and label, (N,)"
            )
        self.images, labels = _arrays(path)
        self.shape = shape
        channels, height, width = shape
        images = self.images
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (height, width, channels):
            raise ValueError(
                f"generated: {path} has image {images.dtype} {images.shape}; "
                f"expected uint8 (N, {height}, {width}, {channels})"
            )
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise ValueError(
                f"generated: {path} has label {labels.dtype} {labels.shape}; expected integers ({len(images)},)"
            )
        self.y = torch.from_numpy(labels.astype(np.int64))
        check_labels(f"generated: {path}", self.y, classes)

    def read(self, indices: Tensor) -> Split:
        """The samples of these indices: x float32 in [0, 1], (n, C, H, W), contiguous; y int64."""
        images = torch.from_numpy(self.images[indices.numpy()])
        return Split(as_float(images.permute(0, 3, 1, 2)), self.y[indices])


class MixedPart(Part):
    """A training part whose epochs are as long as the original one, a given share of each drawn from it.

    An epoch takes ``round(share * N)`` of the N original samples and as many generated ones as N needs, all without
    repetition; a generated set that is too small is gone through again. They are spread evenly: the number of
    original samples in any run of samples, so in every batch, is its share to within one. ``x``, ``y`` and ``first``
    are those of the original samples; batches must be shuffled. The paper's shares are 0.3, and 0.2 for TinyImagenet.
    """

    def __init__(self, original: Part, generated: GeneratedImages, share: float) -> None:
        super().__init__(original.images, original.y, original.augmentation)
        check_share(share)
        self.generated, self.share = generated, share

    def read(self, indices: Tensor) -> Split:
        is_original = indices < len(self)
        x = torch.empty(len(indices), *self.generated.shape)
        y = torch.empty(len(indices), dtype=torch.int64)
        x[is_original], y[is_original] = super().read(indices[is_original])
        x[~is_original], y[~is_original] = self.generated.read(indices[~is_original] - len(self))
        return Split(x, y)

    def _order(self, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            raise ValueError("shuffle: got False; a mixture is drawn anew for each epoch, expected True")
        n = len(self)
        originals = round(self.share * n)
        is_original = (torch.arange(n + 1) * originals // n).diff().bool()
        order = torch.empty(n, dtype=torch.int64)
        order[is_original] = torch.randperm(n, generator=generator)[:originals]
        order[~is_original] = n + _drawn(len(self.generated.y), n - originals, generator)
        return order


def check_share(share: float) -> None:
    """ValueError if the share of original samples is out of range."""
    if not 0 <= share <= 1:
        raise ValueError(f"original_share: got {share}; expected 0 to 1")


def _drawn(population: int, n: int, generator: torch.Generator) -> Tensor:
    rounds = -(-n // population)
    return torch.cat([torch.randperm(population, generator=generator) for _ in range(max(rounds, 1))])[:n]


def _arrays(path: Path) -> tuple[Any, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            lacking = {"image.npy", "label.npy"} - set(archive.namelist())
        if not lacking:
            with np.load(path, allow_pickle=False) as stored:
                mapped = _mapped(path, "image")
                return stored["image"] if mapped is None else mapped, stored["label"]
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(f"generated: {path} is not read as an .npz file of arrays ({error})") from error
    raise ValueError(f"generated: {path} lacks {', '.join(sorted(lacking))}; expected arrays image and label")


def _mapped(path: Path, name: str) -> Any:
    """An array of an .npz file, mapped; None where it is compressed. numpy itself maps single .npy files only."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        return None
    with path.open("rb") as file:
        # The local header: 30 bytes, whose last four are the lengths of the name and of the extra field behind it.
        file.seek(member.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
        version = npy.read_magic(file)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        shape, fortran_order, dtype = read_header(file) if read_header else ((), False, np.dtype(object))
        return (
            None if dtype.hasobject else np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran_order else "C")
        )
