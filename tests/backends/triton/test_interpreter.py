"""The Triton kernels run by Triton's interpreter, on the CPU, in a process of their own.

``TRITON_INTERPRET=1`` must be set before triton is imported, and then no kernel of the process is compiled.
"""

from __future__ import annotations

import pytest

from dreluop.backends.triton import _import_error
from tests.support.own_pytest import passed_in_own_process

pytestmark = pytest.mark.slow


def test_kernels_in_the_interpreter(request: pytest.FixtureRequest) -> None:
    if _import_error() is not None:
        pytest.skip(str(_import_error()))
    passed = passed_in_own_process(request.config, "tests/backends/triton/interpreted", TRITON_INTERPRET="1")
    assert passed > {"full": 90}.get(request.config.option.tier, 60)
