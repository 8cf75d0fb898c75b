"""DRELUOP_HUGE_PAGES decides which outputs ask for large pages: each in its own process, as it is read once."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from dreluop.backends.native import HUGE_PAGES, HUGE_PAGES_VARIABLE
from tests.support import fresh_python
from tests.support.backends import native_or_skip

pytestmark = pytest.mark.slow

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MEGABYTE = 2**20
# Page faults of a fresh output of so many bytes, over its small pages.
COUNT = """
import resource, sys, torch, dreluop
torch.set_num_threads(1)
cap = torch.tensor(1.0)
for count in map(int, sys.argv[1:]):
    x = torch.zeros(count // 4)
    kept = [dreluop.capped_relu(x, cap)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept += [dreluop.capped_relu(x, cap) for _ in range(4)]
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 4 / (count / 4096))
"""


def share_of_small_pages(choice: str, *sizes: int) -> list[float]:
    done = fresh_python.run(COUNT, *map(str, sizes), environment={**os.environ, HUGE_PAGES_VARIABLE: choice})
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


def test_each_choice() -> None:
    native_or_skip()
    found = re.search(r"\[(\w+)\]", SETTING.read_text()) if sys.platform == "linux" and SETTING.exists() else None
    if found is None or found[1] != "madvise":
        pytest.skip("the system gives large pages to all who do not ask, or to none")
    shares = {choice: share_of_small_pages(choice, 3 * MEGABYTE, 64 * MEGABYTE) for choice in HUGE_PAGES}
    assert shares["never"] == pytest.approx([1, 1], abs=0.05)
    assert shares["auto"][0] == pytest.approx(1, abs=0.05) and shares["auto"][1] < 0.2
    assert shares["always"][0] < 0.8 and shares["always"][1] < 0.2


def test_an_unknown_choice_is_an_error_at_import() -> None:
    result = fresh_python.run("import dreluop", environment={**os.environ, HUGE_PAGES_VARIABLE: "maybe"})
    assert result.returncode == 1
    assert 'DRELUOP_HUGE_PAGES: got "maybe"; expected one of auto, never, always' in result.stderr
