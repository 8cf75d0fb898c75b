"""The search for the largest batch, with memory that is only pretended."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.harness.records import NO_TIME
from benchmarks.models import largest
from benchmarks.models.implementations import OURS, RELU
from benchmarks.models.largest import GRAIN, TRIES, Search, find_all, search
from benchmarks.models.steps import FP32
from tests.benchmarks.conftest import Processor, measured
from tests.benchmarks.models.conftest import TINY


@pytest.mark.parametrize("limit", [8, 9, 40, 555, 1000, 1003])
@pytest.mark.parametrize("error", [0.8, 0.93, 1.0, 1.04, 1.2])
def test_the_search_ends_near_the_limit(limit: int, error: float) -> None:
    tried = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= limit

    found = search(fits, limit * error)
    assert found.batch <= limit and found.batch in tried
    assert found.too_large is None or (found.too_large > limit and found.too_large in tried)
    assert found.batch >= limit - max(GRAIN, 0.07 * limit)
    assert len(tried) == len(set(tried)) == found.tries <= TRIES
    assert all(batch % GRAIN == 0 for batch in tried)


@pytest.mark.parametrize("limit", [8, 9, 40, 555, 1000, 1003])
@pytest.mark.parametrize("error", [0.8, 0.93, 1.0, 1.04, 1.2])
def test_a_search_that_had_no_more_time_did_not_end(limit: int, error: float) -> None:
    whole = search(lambda batch: batch <= limit, limit * error)
    assert whole.ended
    for tries in range(1, whole.tries):
        left = iter([True] * (tries - 1) + [False])
        try:
            found = search(lambda batch: batch <= limit, limit * error, lambda: next(left))  # noqa: B023
        except RuntimeError:  # none fits yet, which is a failure
            continue
        assert found.tries == tries and not found.ended


def test_a_good_estimate_is_confirmed_from_both_sides() -> None:
    found = search(lambda batch: batch <= 1003, 1003)
    assert found.batch == 1000 and found.too_large is not None and found.too_large - found.batch <= 2 * GRAIN


def test_nothing_fits() -> None:
    with pytest.raises(RuntimeError, match="none of 6 batches fits, the smallest of"):
        search(lambda batch: False, 1000)
    with pytest.raises(RuntimeError, match="none of 1 batches fits, the smallest of 8 images"):
        search(lambda batch: False, 3)


def test_without_time_the_first_try_counts() -> None:
    assert search(lambda batch: True, 100, lambda: False) == largest.Found(96, None, 1)


PER_IMAGE, FIXED, MEMORY = 1000, 5_000_000, 5_200_000


class Counting(Processor):
    """Has memory for 200 images beside the network, whose allocator loses 10 % of it; keeps the batches tried."""

    def __init__(self) -> None:
        super().__init__(free_bytes=MEMORY)
        self.tried: list[int] = []

    def growth(self, step: Callable[[], None]) -> int:
        batch = step.__self__.images.shape[0]  # type: ignore[attr-defined]
        self.tried.append(batch)
        if batch > 180:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        step()
        # Beside network and data, which are counted apart.
        return FIXED + batch * (PER_IMAGE - 3 * 64 * 4 - 8)


OF = Search(TINY, FP32, (RELU, OURS), 1)


def test_find() -> None:
    platform = Counting()
    found = measured(find_all(OF, platform))
    assert [one["implementation"] for one in found] == [RELU, OURS]
    for one in found:
        assert one["bytes_per_image"] == PER_IMAGE and (one["network"], one["image"]) == (TINY, 8)
        assert 160 <= one["largest"] <= 180 < (one["too_large"] or 0) and one["ended"]
        assert one["largest"] in platform.tried and one["too_large"] in platform.tried
    assert platform.tried[:2] == list(largest.SMALL)


def test_other_errors_are_failures_of_their_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    real = largest.Subject

    def refused(network: str, variant: str, implementation: str, *rest: object, **more: str) -> largest.Subject:
        if implementation == RELU:
            raise RuntimeError("cuDNN says no")
        return real(network, variant, implementation, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(largest, "Subject", refused)
    found, failed = find_all(OF, Counting())
    assert found["implementation"] == OURS
    assert failed == {"implementation": RELU, "failure": "RuntimeError: cuDNN says no"}


def test_memory_that_does_not_grow_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def growth(self: Processor, step: Callable[[], None]) -> int:
        of = step.__self__  # type: ignore[attr-defined]
        return -of.images.nbytes - of.labels.nbytes

    monkeypatch.setattr(Processor, "growth", growth)
    (failed,) = find_all(Search(TINY, FP32, (RELU,), 1), Processor())
    assert "nothing to estimate from" in failed["failure"]


def test_no_time_for_any() -> None:
    assert [one["failure"] for one in find_all(OF, Counting(), until=-1.0)] == [NO_TIME, NO_TIME]
