"""The self-check of `python -m dreluop` by Triton, interpreted: the few inputs that it takes."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from dreluop.backends.triton import kernels
from dreluop.cli import selfcheck
from tests.backends.triton.recorded import record


def test_its_few_inputs_reach_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[selfcheck.Result] = []
    launches = record(monkeypatch, lambda _: results.extend(selfcheck.run()), run=True)
    assert all(result.agrees for result in results)
    modules = (
        importlib.import_module(f"{kernels.__name__}.{found.name}") for found in pkgutil.iter_modules(kernels.__path__)
    )
    every = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    assert "reduction_kernel" in every
    assert {launch.name for launch in launches} == every
