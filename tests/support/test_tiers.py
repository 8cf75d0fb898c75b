"""The tiers of the tests: what each of them keeps, and which one runs."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from types import SimpleNamespace

import pytest

from tests.support import tiers
from tests.support.cases import CASES, DTYPES
from tests.support.pairwise import cover, shown_by

GRID = [dict(zip("abc", values, strict=True)) for values in product(range(10), range(4), range(2))]


@pytest.mark.parametrize(("strength", "least"), [(1, 10), (2, 40)])
def test_few_combinations_show_every_value_or_every_pair(strength: int, least: int) -> None:
    chosen = [GRID[index] for index in cover([shown_by(one, strength) for one in GRID])]
    for names in combinations("abc", strength):
        seen = {tuple(one[name] for name in names) for one in chosen}
        assert seen == {tuple(one[name] for name in names) for one in GRID}
    assert len(chosen) == least


def test_nothing_is_chosen_of_nothing() -> None:
    assert cover([]) == []


def test_every_tier_keeps_every_case_and_every_dtype() -> None:
    grid = [{"case": case, "dtype": dtype, "save": save} for case, dtype, save in product(CASES, DTYPES, "ab")]
    kept = {tier: [grid[index] for index in tiers.choose(grid, tier)] for tier in tiers.STRENGTH}
    for one in kept.values():
        assert [{*values} for values in zip(*(c.values() for c in one), strict=True)] == [{*CASES}, {*DTYPES}, {*"ab"}]
    pairs = {(c["case"].layout, c["dtype"]) for c in kept["normal"]}
    assert pairs == {(c["case"].layout, c["dtype"]) for c in grid}
    assert len(kept["quick"]) < len(kept["normal"]) < len(kept["full"]) == len(grid)
    for one in kept.values():
        times = Counter(combination["dtype"] for combination in one)
        assert max(times.values()) - min(times.values()) <= 2


@pytest.mark.parametrize(
    ("asked", "source", "tier"),
    [(None, "TESTPATHS", "quick"), (None, "ARGS", "normal"), ("full", "ARGS", "full"), ("quick", "ARGS", "quick")],
)
def test_a_path_that_is_named_runs_in_the_normal_tier(asked: str | None, source: str, tier: str) -> None:
    config = SimpleNamespace(option=SimpleNamespace(tier=asked), args_source=pytest.Config.ArgsSource[source])
    tiers.pytest_configure(config)
    assert config.option.tier == tier


def test_the_quick_tier_imports_only_its_folders() -> None:
    config = SimpleNamespace(option=SimpleNamespace(tier="quick"))
    assert tiers.pytest_ignore_collect(tiers.TESTS / "compile" / "test_forms.py", config)
    assert not tiers.pytest_ignore_collect(tiers.TESTS / "ops" / "test_forward.py", config)
    config.option.tier = "normal"
    assert not tiers.pytest_ignore_collect(tiers.TESTS / "compile" / "test_forms.py", config)


def test_what_is_named_is_there() -> None:
    assert all((tiers.TESTS / name).exists() for name in tiers.QUICK_FOLDERS)
