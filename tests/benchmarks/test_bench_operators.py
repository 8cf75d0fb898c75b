from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("pytest_benchmark")

from benchmarks import bench_operators
from benchmarks.bench_operators import every_call
from benchmarks.harness.workloads import Case, make_data
from dreluop.backends.selection import operators_of
from dreluop.ops import schemas

ROOT = Path(__file__).parents[2]
CASE = Case("", "channel", (2, 3, 4, 5), torch.float32, (), channels_last=True)


class Watch(TorchDispatchMode):
    """Notes which operators of ours are called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == schemas.NAMESPACE:
            self.called.append(func._opname)
        return func(*args, **(kwargs or {}))


def test_every_operator_is_there_and_each_call_makes_one() -> None:
    found = every_call(CASE, make_data(CASE), operators_of("native"))
    assert list(found) == bench_operators._names()
    called = set()
    for name, call in found.items():
        with Watch() as watch:
            call()
        assert len(watch.called) == 1, name
        assert name.split(" ")[0].rstrip(",") == watch.called[0]
        called.add(watch.called[0])
    assert called == set(schemas.SCHEMAS)


@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron"])
def test_every_backend_serves_every_call(granularity: str) -> None:
    case = Case("", granularity, (4, 3, 5), torch.bfloat16, ())
    for backend in ("native", "reference"):
        for call in every_call(case, make_data(case), operators_of(backend)).values():
            call()


def test_pytest_runs_it_when_named() -> None:
    # A worker of xdist says so to its children, where pytest-benchmark would then not measure.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    selected = "saturation and neuron-dense and fp32 and 64KB and cpu"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", bench_operators.__file__, "-k", selected],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "saturation, neuron-dense, fp32, 64 KB, cpu" in done.stdout
