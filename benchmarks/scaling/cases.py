"""The inputs of the scaling suite, and how each is visited.

=====  ====================================================================================================
axis   inputs
=====  ====================================================================================================
size   x of 1 KB to 1 GB (256 MB on a CPU) by powers of 4, 64 channel caps, NCHW, bf16 and fp32
caps   1 to 4096 channel caps by powers of 4, x of 64 MB, NCHW, 8 x 8 elements to a channel; on a CPU bf16
=====  ====================================================================================================

=====  ====================================================================================================
mode   what the calls of a sample find
=====  ====================================================================================================
hot    x, and room for all results, in the last-level cache: one buffer, few calls
cold   not in that cache: the calls go round buffers that together are larger; measured where they can be
eager  (CUDA) the same buffers as hot or cold, but the host launches each call while the clock runs; hot and
       cold are CUDA graphs, in which no host takes part. On a CPU the host is in every mode.
=====  ====================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from benchmarks.harness import implementations as c
from benchmarks.harness.table import size_name
from benchmarks.kernels.suite import COLD_MODE, HOT_MODE, Case

SIZE, CAPS = "size", "caps"
EAGER_MODE = "eager"
CHANNELS = 64
LARGEST = {"cpu": 2**28, "cuda": 2**30}  # bytes of x
SIZES = tuple(2**power for power in range(10, 31, 2))
CAP_COUNTS = tuple(4**power for power in range(7))
X_OF_CAPS = 2**26  # bytes
MOST_INNER = 64 * 64  # elements of a channel in one sample, axis size
INNER_OF_CAPS = 8 * 8
DTYPES = (torch.bfloat16, torch.float32)

MOST_BUFFERS = 128
MOST_CALLS = 32  # on one buffer
ROOM = 8  # times x: what a call of the hungriest implementation touches
COMPILED_AT = (2**16, 2**22, 2**28)  # bytes of x: compiling takes seconds
# On a CPU eager takes seconds beyond, on one thread beyond the second.
EAGER_ON_CPU, ALONE_ON_CPU = 2**26, 2**24  # bytes of x
EAGER_CAPS_ON_CPU = (1, 64, 4096)


@dataclass(frozen=True)
class Point(Case):
    """A case of the suite, by its axis; no threads on a GPU."""

    axis: str = SIZE
    modes: tuple[str, ...] = ()

    @property
    def caps(self) -> int:
        return self.shape[1]


def shape_of_size(elements: int) -> tuple[int, ...]:
    """NCHW with ``CHANNELS`` channels; elements are a power of 2, at least 4 to a channel.

    Raises:
        ValueError: they are not.
    """
    if elements < 4 * CHANNELS or elements & (elements - 1):
        raise ValueError(f"elements: got {elements}; expected a power of 2, at least {4 * CHANNELS}")
    per_channel = elements // CHANNELS
    inner = min(per_channel, MOST_INNER)
    height = 2 ** (int(math.log2(inner)) // 2)
    return per_channel // inner, CHANNELS, height, inner // height


def shape_of_caps(caps: int, elements: int) -> tuple[int, ...]:
    side = math.isqrt(INNER_OF_CAPS)
    return elements // (caps * INNER_OF_CAPS), caps, side, side


def buffers_when_cold(x_bytes: int, cache_bytes: int) -> int:
    """So many that x and y of all are twice the cache, if that is not too many."""
    return max(1, min(math.ceil(cache_bytes / x_bytes), MOST_BUFFERS))


def calls_when_hot(x_bytes: int, cache_bytes: int) -> int:
    return max(1, min(cache_bytes // (ROOM * x_bytes), MOST_CALLS))


def modes_of(x_bytes: int, cache_bytes: int) -> tuple[str, ...]:
    """Hot where a call fits in the cache, cold where the buffers do not."""
    hot = ROOM * x_bytes <= cache_bytes
    cold = 2 * x_bytes * buffers_when_cold(x_bytes, cache_bytes) >= 2 * cache_bytes
    return (HOT_MODE,) * hot + (COLD_MODE,) * (cold or not hot)


def points(device: str, cache_bytes: int, *, quick: bool = False, compiled: bool = True) -> list[Point]:
    """All points, the more telling first.

    Args:
        device: "cpu" or "cuda".
        cache_bytes: of its last-level cache.
        quick: every third size and number of caps, bfloat16 only.
        compiled: whether torch.compile takes part.
    """
    sizes = [size for size in SIZES if size <= LARGEST[device]]
    counts = list(CAP_COUNTS)
    dtypes: Iterable[torch.dtype] = DTYPES
    if quick:
        sizes, counts, dtypes = sizes[::3], counts[::3], DTYPES[:1]
    found = []
    for dtype in dtypes:
        first = dtype == DTYPES[0]
        for size in sizes:
            eager = device == "cuda" or size <= EAGER_ON_CPU
            who = _implementations(device, eager, compiled and eager and first and size in COMPILED_AT)
            modes = (*modes_of(size, cache_bytes), *((EAGER_MODE,) if device == "cuda" else ()))
            shape = shape_of_size(size // dtype.itemsize)
            found.append(Point(_name(size, CHANNELS), "channel", shape, dtype, who, axis=SIZE, modes=modes))
        for count in counts if device == "cuda" or first else ():
            who = _implementations(device, device == "cuda" or count in EAGER_CAPS_ON_CPU, False)
            shape = shape_of_caps(count, X_OF_CAPS // dtype.itemsize)
            modes = modes_of(X_OF_CAPS, cache_bytes)[-1:]
            found.append(Point(_name(X_OF_CAPS, count), "channel", shape, dtype, who, axis=CAPS, modes=modes))
    return found if device == "cuda" else _by_threads(found)


def _implementations(device: str, eager: bool, compiled: bool) -> tuple[str, ...]:
    who = [c.OURS.name]
    if eager:
        who.append(c.RELU_MINIMUM.name)
    if device == "cuda":
        who.append(c.OURS_TRITON.name)
    if compiled:
        who.append(c.COMPILED.name)
    return tuple(who)


def _by_threads(found: Iterable[Point]) -> list[Point]:
    """On two threads, and the sizes on one too, where torch.compile and what takes seconds are left out."""
    both = [replace(point, threads=2) for point in found]
    for point in found:
        if point.axis == SIZE and point.x_bytes <= ALONE_ON_CPU:
            both.append(replace(point, threads=1, implementations=_implementations("cpu", True, False)))
    return both


def _name(x_bytes: int, caps: int) -> str:
    return f"{size_name(x_bytes)}, {caps} caps"
