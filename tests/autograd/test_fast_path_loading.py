"""When the compiled node is loaded, and what is said where it is not."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
import torch

import dreluop
from dreluop.autograd import fast_path
from tests.support import fresh_python
from tests.support.backends import fast_path_or_skip

pytestmark = pytest.mark.slow

PROGRAM = """
import torch, dreluop
from dreluop import __main__
print(type(dreluop.capped_relu(torch.ones(2, 3, requires_grad=True), torch.ones(3)).grad_fn).__name__)
print(__main__._autograd_line())
"""


def test_the_variable_may_ask_for_python() -> None:
    done = fresh_python.run(PROGRAM, environment={**os.environ, "DRELUOP_AUTOGRAD": "python"})
    why = "not loaded: DRELUOP_AUTOGRAD=python asks for Python"
    said = ["PlainActivationBackward", f"autograd     by Python; no compiled node: {why}"]
    assert done.stdout.splitlines() == said, done.stderr


def test_an_unknown_choice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRELUOP_AUTOGRAD", "cpp")
    with pytest.raises(ValueError, match='DRELUOP_AUTOGRAD: got "cpp"; expected one of auto, python, compiled'):
        fast_path._load()


def test_with_another_torch_python_serves_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    fast_path_or_skip()
    monkeypatch.delitem(sys.modules, "dreluop._autograd")
    monkeypatch.delattr(dreluop, "_autograd")
    built_with = str(torch.__version__)
    monkeypatch.setattr(fast_path, "torch", SimpleNamespace(__version__="2.11.1"))
    assert fast_path._load_module() == f"built with torch {built_with}, and this is torch 2.11.1"
    assert "dreluop._autograd" not in sys.modules
    monkeypatch.setenv("DRELUOP_AUTOGRAD", "compiled")
    with pytest.raises(ImportError, match="the compiled autograd node does not serve: built with torch"):
        fast_path._load()


def test_without_a_build_python_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_path.importlib.util, "find_spec", lambda _: None)
    assert fast_path._load_module() == "dreluop._autograd is not built"
