"""Which tests run: ``pytest`` alone runs the quick tier, a path that is named the normal one; ``--tier`` chooses.

=============  ==================================================================================================
quick          every value of each parameter, in folders that start no compiler and no other program
compatibility  every value of each parameter, in every folder: for another torch than that of the build
normal         every pair of values of two parameters: what CI runs
full           every combination of parameters, and what is marked ``full``: values that reach no branch of their own
=============  ==================================================================================================
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.cases import Case
from tests.support.pairwise import cover, shown_by

TESTS = Path(__file__).parents[1]
# How many parameters of a test are seen with all of each other's values; None: all of them.
STRENGTH = {"quick": 1, "compatibility": 1, "normal": 2, "full": None}
QUICK_FOLDERS = ("adaptive", "autograd", "backends", "ops", "support", "unit")
MARKED_FOLDERS = ("benchmarks", "build", "compile", "distributed", "surgery", "triton")
LEFT_OUT = {"quick": ("slow", "full"), "compatibility": ("full",), "normal": ("full",), "full": ()}
# Of so few tests of one function, none is left out.
FEW = {"quick": 4, "compatibility": 4, "normal": 12, "full": 0}
SAMPLE = "DRELUOP_TEST_SAMPLE"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=STRENGTH, help="which tests run (tests/support/tiers.py); CI runs normal")


def pytest_configure(config: pytest.Config) -> None:
    # In the process that starts the workers: they get its options, but not where its arguments are from.
    if config.option.tier is None:
        named = config.args_source is pytest.Config.ArgsSource.ARGS
        config.option.tier = "normal" if named else "quick"


def pytest_report_header(config: pytest.Config) -> str:
    return f"tier: {config.option.tier} (--tier={'|'.join(STRENGTH)})"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what the quick tier leaves out."""
    if config.option.tier != "quick" or TESTS not in collection_path.parents:
        return None
    return True if collection_path.relative_to(TESTS).parts[0] not in QUICK_FOLDERS else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for folder in {*item.path.parts[len(TESTS.parts) : -1]} & {*MARKED_FOLDERS}:
            item.add_marker(folder)
    left_out: set[pytest.Item] = set()
    for rule in (_marked, _thinned, _not_sampled):
        left_out |= rule([item for item in items if item not in left_out], config.option.tier)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def _marked(items: list[pytest.Item], tier: str) -> set[pytest.Item]:
    """Tests with a mark that keeps them for a later tier; those that compile have the mark slow in effect."""
    left_out = {item for item in items if any(item.get_closest_marker(mark) for mark in LEFT_OUT[tier])}
    return left_out | {item for item in items if tier == "quick" and _compiles(item)}


def _compiles(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and "fresh_compiler" in item.fixturenames


def _thinned(items: list[pytest.Item], tier: str) -> set[pytest.Item]:
    """All but few tests of each function that has many; each backend is tested for itself."""
    by_function = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            by_function[item.nodeid.partition("[")[0], item.callspec.params.get("backend")].append(item)
    left_out = set()
    for tests in by_function.values():
        if len(tests) > FEW[tier]:
            chosen = choose([test.callspec.params for test in tests], tier)
            left_out |= {*tests} - {tests[index] for index in chosen}
    return left_out


def choose(grid: Sequence[Mapping[str, object]], tier: str) -> list[int]:
    """Indices of the combinations of parameters that a tier keeps."""
    strength = STRENGTH[tier]
    return [*range(len(grid))] if strength is None else cover([_shown_by(values, strength) for values in grid])


def _shown_by(values: Mapping[str, object], strength: int) -> frozenset[Hashable]:
    """Each case is there; with other parameters, its traits stand for it."""
    # One object is one value, as some cannot be hashed.
    factors: dict[str, Hashable] = {name: id(value) for name, value in values.items()}
    case = values.get("case")
    if not isinstance(case, Case):
        return shown_by(factors, strength)
    number = factors.pop("case")
    return shown_by(factors | case.traits(), strength) | {number}


def _not_sampled(items: list[pytest.Item], tier: str) -> set[pytest.Item]:
    """With DRELUOP_TEST_SAMPLE=n, all but every n-th Triton test of each function, and but one of each.

    Many take seconds in the interpreter.
    """
    step = int(os.environ.get(SAMPLE, "1"))
    left_out = set()
    by_function = defaultdict(list)
    for item in items:
        function, _, parameters = item.nodeid.partition("[")
        if "triton" in parameters:
            by_function[function].append(item)
    for tests in by_function.values():
        # From the middle, as the first cases are those without an element.
        left_out |= {*tests} - {*tests[min(step, len(tests)) // 2 :: step]}
    return left_out
