from __future__ import annotations

import math

import pytest
import torch

from benchmarks.harness import implementations as c
from benchmarks.kernels.suite import COLD_MODE, HOT_MODE
from benchmarks.scaling import cases
from benchmarks.scaling.cases import CAPS, EAGER_MODE, SIZE, Point, points

CACHE = 50 * 2**20


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_both_axes_are_covered(device: str) -> None:
    found = points(device, CACHE)
    for dtype in (torch.bfloat16, torch.float32):
        of = [point for point in found if point.dtype == dtype and point.threads in (None, 2)]
        sizes = [point.x_bytes for point in of if point.axis == SIZE]
        largest = {"cpu": 2**28, "cuda": 2**30}[device]
        assert sizes == [2**power for power in range(10, int(math.log2(largest)) + 1, 2)]
        caps = [point for point in of if point.axis == CAPS]
        assert {point.x_bytes for point in caps} <= {2**26}
        if device == "cuda" or dtype == torch.bfloat16:
            assert [point.caps for point in caps] == [1, 4, 16, 64, 256, 1024, 4096]
    assert all(point.granularity == "channel" and not point.channels_last for point in found)
    assert all(c.OURS.name in point.implementations for point in found)
    eager = [point for point in found if c.RELU_MINIMUM.name in point.implementations]
    assert {point.axis for point in eager} == {SIZE, CAPS}
    if device == "cuda":
        assert eager == found
    else:
        assert max(point.x_bytes for point in eager) == 2**26
    assert any(c.COMPILED.name in point.implementations for point in found)


def test_sizes_share_their_caps_and_caps_their_size() -> None:
    for point in points("cuda", CACHE):
        if point.axis == SIZE:
            assert point.cap_shape == (64,)
        else:
            assert point.cap_shape == (point.caps,)
            assert point.shape[2:] == (8, 8)


def test_a_gpu_has_triton_and_no_threads() -> None:
    for point in points("cuda", CACHE):
        assert c.OURS_TRITON.name in point.implementations
        assert point.threads is None
        assert (EAGER_MODE in point.modes) == (point.axis == SIZE)


def test_a_processor_has_one_thread_and_two() -> None:
    found = points("cpu", CACHE)
    assert {point.threads for point in found} == {1, 2}
    assert all(c.OURS_TRITON.name not in point.implementations and EAGER_MODE not in point.modes for point in found)
    assert not any(c.COMPILED.name in point.implementations for point in found if point.threads == 1)


def test_without_compile() -> None:
    assert not any(c.COMPILED.name in point.implementations for point in points("cuda", CACHE, compiled=False))


def test_quick_points_are_few() -> None:
    assert len(points("cuda", CACHE, quick=True)) < 10


@pytest.mark.parametrize("x_bytes", cases.SIZES)
def test_hot_fits_in_the_cache_and_cold_does_not(x_bytes: int) -> None:
    modes = cases.modes_of(x_bytes, CACHE)
    assert modes
    if HOT_MODE in modes:
        # What every call touches, eager temporaries included.
        assert cases.calls_when_hot(x_bytes, CACHE) * cases.ROOM * x_bytes <= CACHE
    else:
        assert modes == (COLD_MODE,)
    if COLD_MODE in modes:
        assert 2 * x_bytes * cases.buffers_when_cold(x_bytes, CACHE) >= 2 * CACHE
    assert cases.buffers_when_cold(x_bytes, CACHE) <= cases.MOST_BUFFERS


def test_tiny_tensors_are_not_called_cold() -> None:
    assert cases.modes_of(2**10, CACHE) == (HOT_MODE,)
    assert cases.modes_of(2**22, CACHE) == (HOT_MODE, COLD_MODE)
    assert cases.modes_of(2**28, CACHE) == (COLD_MODE,)


@pytest.mark.parametrize("elements", [255, 128, 3 * 2**10])
def test_only_powers_of_two_have_a_shape(elements: int) -> None:
    with pytest.raises(ValueError, match=f"elements: got {elements}; expected a power of 2"):
        cases.shape_of_size(elements)


@pytest.mark.parametrize("power", range(8, 30))
def test_shapes_hold_the_elements(power: int) -> None:
    shape = cases.shape_of_size(2**power)
    assert math.prod(shape) == 2**power
    assert shape[1] == 64
    assert shape[2] * shape[3] <= 64 * 64


def test_names() -> None:
    assert [cases.size_name(size) for size in (2**10, 2**24, 2**30, 12)] == ["1 KB", "16 MB", "1 GB", "12 B"]
    assert Point("", "channel", (2, 5, 1, 1), torch.float32, ()).caps == 5
