"""Demo and benchmark do not measure the reference unasked."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.backend import served_by
from dreluop._internal import env
from dreluop.backends import native


def test_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load_error", None)
    assert served_by(argparse.ArgumentParser()) == "native"


def test_a_library_that_does_not_load_ends_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "load_error", "no such file")
    monkeypatch.delenv(env.ENVIRONMENT_VARIABLE, raising=False)
    with pytest.raises(SystemExit, match="2"):
        served_by(argparse.ArgumentParser())
    assert "the compiled operators do not load: no such file" in capsys.readouterr().err


def test_the_reference_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load_error", "not loaded")
    monkeypatch.setenv(env.ENVIRONMENT_VARIABLE, "reference")
    assert served_by(argparse.ArgumentParser()) == "reference"
