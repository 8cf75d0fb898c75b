"""How launches are distinguished, without a GPU; `tests/gpu/test_measuring.py` has what needs one."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import cuda_graphs as timing
from benchmarks.harness.cuda_graphs import Call, Launches

SPIN = "at::cuda::(anonymous namespace)::spin_kernel(long)"
CALLS = [Call(lambda _: None, lambda: None)] * 3


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the profiler is to see, session by session."""
    planned: list[list[str]] = []

    def launched(work: timing.Work) -> list[str]:
        work()
        return planned.pop(0)

    monkeypatch.setattr(timing, "_launched", launched)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    return planned


def test_one_session_is_cut_at_the_separators(sessions: list[list[str]]) -> None:
    sessions.append(["a", "Memset (Device)", SPIN, SPIN, "Memcpy DtoD", "b", "c", SPIN])
    assert timing.launches(CALLS) == [Launches(1, 1, 0), Launches(0, 0, 0), Launches(2, 0, 1)]
    assert sessions == []


def test_where_separators_are_not_seen_each_call_has_a_session(sessions: list[list[str]]) -> None:
    sessions += [["a", "b", "c"], ["a"], ["b"], ["c", "Memset"]]
    assert timing.launches(CALLS) == [Launches(1, 0, 0), Launches(1, 0, 0), Launches(1, 1, 0)]


def test_a_profiler_that_sees_nothing(sessions: list[list[str]]) -> None:
    sessions.append([])
    assert timing.launches(CALLS) == [None, None, None]


def test_every_call_gets_its_argument_made_before(sessions: list[list[str]]) -> None:
    seen: list[str] = []
    made = iter("abcd")
    calls = [Call(seen.append, lambda: next(made)), Call(seen.append, lambda: next(made))]
    sessions.append(["k", SPIN, "k", SPIN])
    timing.launches(calls)
    # Once to warm up, then the counted call.
    assert seen == ["a", "b", "c", "d"]
