"""The cases of the operators' tests reach every branch of the plans, on the CPU and on the GPU, in every tier."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from itertools import product

import pytest
import torch

from tests.build.conftest import Cpp
from tests.support import tiers
from tests.support.cases import CASES, DTYPES, FEW_CASES, Case, dtype_id

# All that tests/csrc/case_branches.cpp can say.
BRANCHES = {
    *("empty", "one cap", "channels innermost", "channels between", "channels outermost"),
    *("neurons, in memory order", "neurons, batch innermost", "neurons, batch moved to the front"),
    *("dense", "strided", "overlapping"),
    *("cpu: one run", "cpu: runs", "cpu: runs of several tiles"),
    *("cpu: columns", "cpu: columns, as there are many rows", "cpu: repeated columns"),
    *("cpu: columns of several tiles", "cpu: tiles below each other", "cpu: last row cut off"),
    *("cuda forward: spans", "cuda forward: aligned caps", "cuda forward: a cap each"),
    *("cuda forward: head", "cuda forward: rest"),
    *("cuda backward: packed rows of one cap", "cuda backward: packed rows of several caps"),
    *("cuda backward: segments of rows", "cuda backward: several segments of a run"),
    *("cuda backward: columns of vectors", "cuda backward: columns, general", "cuda backward: repeated columns"),
    *("cuda backward: tiles of columns", "cuda backward: last vector of a row cut off"),
    *("cuda backward: last row cut off", "cuda backward: blocks that share caps"),
}
Reached = dict[tuple[Case, torch.dtype], set[str]]


def described(case: Case) -> str:
    x, cap = case.inputs(torch.float32)
    sizes = (x.shape, x.stride(), cap.shape)
    return ";".join([f"{x.storage_offset()} {case.dim}", *(" ".join(map(str, numbers)) for numbers in sizes)])


@pytest.fixture(scope="module")
def reached(cpp: Cpp) -> Reached:
    """The branches of each case with each dtype."""
    program, lines = cpp.make("case_branches", "tests/csrc/case_branches"), "\n".join(map(described, CASES))
    answers = subprocess.run([program], input=f"{lines}\n", text=True, capture_output=True, check=True).stdout
    result: Reached = {}
    for case, answer in zip(CASES, answers.splitlines(), strict=True):
        by_dtype = dict(one.split(": ", 1) for one in answer.removesuffix(";").split(";"))
        result |= {(case, dtype): {*by_dtype[dtype_id(dtype)].split(" + ")} for dtype in DTYPES}
    return result


def test_every_branch_is_reached(reached: Reached) -> None:
    assert set().union(*reached.values()) == BRANCHES


@pytest.mark.parametrize("tier", tiers.STRENGTH)
def test_a_thinner_tier_reaches_every_branch_that_all_cases_do(reached: Reached, tier: str) -> None:
    grid = [{"case": case, "dtype": dtype} for case, dtype in product(CASES, DTYPES)]
    tested = [(grid[index]["case"], grid[index]["dtype"]) for index in tiers.choose(grid, tier)]
    assert {case for case, _ in tested} == {*CASES}
    assert {branch for pair in tested for branch in reached[pair]} == BRANCHES
    if tier == "normal":
        # With every dtype, as vectors have other lengths.
        assert with_dtypes(reached, tested) == with_dtypes(reached, reached)


def with_dtypes(reached: Reached, tested: Iterable[tuple[Case, torch.dtype]]) -> set[tuple[str, torch.dtype]]:
    return {(branch, dtype) for case, dtype in tested for branch in reached[case, dtype]}


def test_every_case_says_why_it_is_there() -> None:
    for cases in (CASES, FEW_CASES):
        reasons = [case.why for case in cases]
        assert all(reasons)
        assert len({*reasons}) == len(cases)
