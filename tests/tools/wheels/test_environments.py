"""Trying a wheel: what a failure leaves, and that no compiler can be found; whole runs are committed results."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tools.wheels import environments
from tools.wheels.__main__ import main


def test_a_missing_interpreter_is_a_row(tmp_path: Path) -> None:
    row = environments.run_case("/nowhere/python", "2.11.0", tmp_path)
    assert row.failure is not None and "/nowhere/python" in row.failure
    assert (row.torch, row.wheel, row.passed) == ("2.11.0", None, 0)


def test_what_a_command_says_is_in_the_failure() -> None:
    with pytest.raises(environments.FailedError, match=r"ended with 3: no torch here"):
        environments.output([sys.executable, "-c", "import sys; print('no torch here'); sys.exit(3)"])


def test_the_environment_finds_no_compiler_and_no_other_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("PYTHONPATH", "CUDA_HOME", "DRELUOP_BACKEND", "PYENV_VERSION"):
        monkeypatch.setenv(name, "/somewhere")
    monkeypatch.setenv("KEPT", "yes")
    found = environments.variables(tmp_path)
    assert found["PATH"] == str(tmp_path)
    assert found["CC"] == found["CXX"] == "/bin/false"
    assert not [name for name in found if name.startswith(("PYTHON", "CUDA", "DRELUOP", "PYENV"))]
    assert found["KEPT"] == "yes" and os.environ["PYTHONPATH"] == "/somewhere"


def test_the_wheel_that_pip_took(tmp_path: Path) -> None:
    site, wheels = tmp_path / "site", tmp_path / "wheels"
    (site / "dreluop-1.dist-info").mkdir(parents=True)
    (site / "dreluop-1.dist-info" / "WHEEL").write_text("Wheel-Version: 1.0\nTag: cp312-cp312-manylinux_2_34_x86_64\n")
    wheels.mkdir()
    for python in ("cp311", "cp312"):
        (wheels / f"dreluop-1-{python}-{python}-manylinux_2_34_x86_64.whl").touch()
    name = environments.wheel_of(site / "dreluop", wheels)
    assert name == "dreluop-1-cp312-cp312-manylinux_2_34_x86_64.whl"


def test_a_folder_without_wheels_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["try", str(tmp_path)])
    assert f"wheels: got {tmp_path}; expected a folder with wheels" in capsys.readouterr().err
