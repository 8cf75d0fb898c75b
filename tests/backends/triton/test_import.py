"""Nothing of Triton is imported before it is asked for, and where it cannot serve it says why."""

from __future__ import annotations

import os

import pytest
import torch

from dreluop.backends import triton as backend
from dreluop.backends.reference import __dict__ as reference
from dreluop.ops.schemas import SCHEMAS
from tests.support import fresh_python

pytestmark = pytest.mark.slow

needs_triton = pytest.mark.skipif(backend._import_error() is not None, reason=str(backend._import_error()))


def run(code: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = fresh_python.run(code, environment=kept | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


NOT_IMPORTED = """
import sys
import dreluop, dreluop.backends.triton as backend
backend.unavailable_reason("cpu"); backend.unavailable_reason("mps")
assert not [name for name in sys.modules if (name + ".").startswith(("triton.", "dreluop.backends.triton.k"))]
import torch
assert not torch.cuda.is_initialized()
print("ok")
"""


def test_import_leaves_triton_alone() -> None:
    assert run(NOT_IMPORTED) == "ok"


HIDDEN = """
import os, sys
sys.modules["triton"] = None
from dreluop.backends import triton as backend
print(backend.unavailable_reason("cuda"))
try:
    backend.functions()
except ImportError as error:
    print(error)
os.environ["TRITON_INTERPRET"] = "1"
print(backend.unavailable_reason("cpu"))
"""


def test_a_torch_without_triton() -> None:
    lines = run(HIDDEN).splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith("triton cannot be imported: ModuleNotFoundError"), line


@needs_triton
def test_a_broken_triton() -> None:
    broken = """
import sys, importlib.abc
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "triton":
            raise RuntimeError("libtriton.so: undefined symbol: abc")
sys.meta_path.insert(0, Finder())
from dreluop.backends import triton as backend
print(backend.unavailable_reason("cuda"))
"""
    assert run(broken) == "triton cannot be imported: RuntimeError: libtriton.so: undefined symbol: abc"


INTERPRETED = """
import os
from dreluop.backends import triton as backend
print(backend.unavailable_reason("cpu"))
os.environ["TRITON_INTERPRET"] = "1"
print(backend.unavailable_reason("cpu"))
print(backend.unavailable_reason("cuda"))
del os.environ["TRITON_INTERPRET"]
backend.functions()
os.environ["TRITON_INTERPRET"] = "1"  # too late: the kernels are compiled ones
print(backend.unavailable_reason("cpu"))
"""


@needs_triton
def test_the_cpu_needs_the_interpreter() -> None:
    without, within, cuda, late = run(INTERPRETED).splitlines()
    assert "TRITON_INTERPRET=1, set before triton is imported" in without
    assert within == "None"
    assert cuda == "TRITON_INTERPRET=1: the kernels are interpreted, on CPU tensors"
    assert late == without


def test_a_device_type_without_kernels() -> None:
    assert backend.unavailable_reason("mps") == 'Triton kernels serve cuda and xpu tensors, not "mps"'


@needs_triton
def test_reasons_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backend, "_is_interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend.unavailable_reason("cuda") == "torch sees no CUDA device"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert backend.unavailable_reason("cuda") == "this torch is not built for CUDA or ROCm"
    monkeypatch.undo()
    monkeypatch.setattr(backend, "_is_interpreted", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=0: (7, 5))
    assert backend.unavailable_reason("cuda") == "Triton needs compute capability 8.0; the devices have 7.x"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=0: (9, 0))
    assert backend.unavailable_reason("cuda") is None


@needs_triton
def test_a_function_for_every_operator() -> None:
    functions = backend.functions()
    assert set(functions) == set(SCHEMAS)
    assert backend.functions() is functions
    for name, function in functions.items():
        assert function.__annotations__ == reference[name].__annotations__, name
        assert function.__defaults__ == reference[name].__defaults__, name
