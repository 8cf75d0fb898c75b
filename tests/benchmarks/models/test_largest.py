"""The search for the largest batch, with memory that is only pretended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from benchmarks.models import largest
from benchmarks.models.implementations import OURS, RELU
from benchmarks.models.largest import GRAIN, TRIES, Search, find_all, search
from benchmarks.models.steps import FP32, Platform
from benchmarks.running import NO_TIME
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
    def row(tries: int) -> largest.Largest:
        left = iter([True] * (tries - 1) + [False])
        found = search(lambda batch: batch <= limit, limit * error, lambda: next(left))
        assert found.tries == min(tries, whole.tries)
        return made(found)

    def made(found: largest.Found) -> largest.Largest:
        of = {"network": TINY, "precision": FP32, "implementation": RELU, "image": 8, "bytes_per_image": 1.0}
        return {**of, **vars(found)}  # type: ignore[typeddict-item]

    whole = search(lambda batch: batch <= limit, limit * error)
    assert largest.ended(made(whole))
    for tries in range(1, whole.tries):
        try:
            found = row(tries)
        except RuntimeError:  # none fits yet, which is a failure
            continue
        assert not largest.ended(found)


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


@pytest.fixture
def counting(platform: Platform) -> tuple[Platform, list[int]]:
    """A platform with memory for 200 images beside the network, whose allocator loses 10 % of it; the batches tried."""
    tried: list[int] = []

    def growth(step: Callable[[], None]) -> int:
        batch = step.__self__.images.shape[0]  # type: ignore[attr-defined]
        tried.append(batch)
        if batch > 180:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        step()
        # Beside network and data, which are counted apart.
        return FIXED + batch * (PER_IMAGE - 3 * 64 * 4 - 8)

    return replace(platform, growth=growth, free_bytes=lambda: MEMORY, release=lambda: None), tried


def test_find(counting: tuple[Platform, list[int]]) -> None:
    platform, tried = counting
    found, failures = find_all(Search(TINY, FP32, (RELU, OURS), 1), platform)
    assert failures == []
    assert [one["implementation"] for one in found] == [RELU, OURS]
    for one in found:
        assert set(one) == set(largest.Largest.__annotations__)
        assert one["bytes_per_image"] == PER_IMAGE
        assert 160 <= one["batch"] <= 180 < (one["too_large"] or 0)
        assert one["batch"] in tried and one["too_large"] in tried
    assert tried[:2] == list(largest.SMALL)


def test_other_errors_are_failures_of_their_implementation(
    counting: tuple[Platform, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = largest.Subject

    def refused(network: str, variant: str, implementation: str, *rest: object, **more: str) -> largest.Subject:
        if implementation == RELU:
            raise RuntimeError("cuDNN says no")
        return real(network, variant, implementation, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(largest, "Subject", refused)
    of = Search(TINY, FP32, (RELU, OURS), 1)
    found, failures = find_all(of, counting[0])
    assert [one["implementation"] for one in found] == [OURS]
    assert failures == [{"case": of.label, "implementation": RELU, "reason": "RuntimeError: cuDNN says no"}]


def test_memory_that_does_not_grow_is_a_failure(platform: Platform) -> None:
    def growth(step: Callable[[], None]) -> int:
        of = step.__self__  # type: ignore[attr-defined]
        return -of.images.nbytes - of.labels.nbytes

    constant = replace(platform, growth=growth, release=lambda: None)
    found, failures = find_all(Search(TINY, FP32, (RELU,), 1), constant)
    assert found == [] and "nothing to estimate from" in failures[0]["reason"]


def test_no_time_for_any(counting: tuple[Platform, list[int]]) -> None:
    found, failures = find_all(Search(TINY, FP32, (RELU, OURS), 1), counting[0], until=-1.0)
    assert found == []
    assert [one["reason"] for one in failures] == [NO_TIME, NO_TIME]
