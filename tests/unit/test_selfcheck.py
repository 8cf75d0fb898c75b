"""``python -m dreluop``: what it prints, its exit code, and the load error of a native part that does not load."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

import dreluop
from dreluop import __main__ as command
from dreluop._internal import env
from dreluop.backends import selection
from dreluop.cli import selfcheck
from dreluop.ops import schemas
from tests.support import fresh_python
from tests.support.backends import native_or_skip

PACKAGE = Path(dreluop.__file__).parent


COMMAND = "import runpy; runpy.run_module('dreluop', run_name='__main__', alter_sys=True)"


def run(
    *arguments: str, program: str = COMMAND, path: Path = PACKAGE.parent, **environment: str
) -> CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != env.ENVIRONMENT_VARIABLE}
    return fresh_python.run(program, *arguments, environment=clean | environment, folder=path)


@pytest.mark.slow
def test_it_passes_and_names_versions_and_backends() -> None:
    result = run()
    assert result.returncode == 0, result.stdout + result.stderr
    for part in (dreluop.__version__, torch.__version__, "native", "reference", "self-check"):
        assert part in result.stdout
    assert "MISMATCH" not in result.stdout


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([option])
    assert ended.value.code == 0
    out, error = capsys.readouterr()
    assert out.startswith("usage: python -m dreluop [-h] [--version]") and "self-check" in out and error == ""


@pytest.mark.slow
def test_version() -> None:
    result = run("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{dreluop.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--verbose"], ["-x"], ["cpu"], ["--version=2"]])
def test_what_it_does_not_know_is_an_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("usage: python -m dreluop") and arguments[0].split("=")[0] in error


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_reader_that_goes_ends_it_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:
        result = subprocess.run(
            [sys.executable, "-m", "dreluop"],
            cwd=PACKAGE.parent,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, "")


def test_it_compares_every_operator_of_the_native_part() -> None:
    native_or_skip()
    results = selfcheck.run()
    assert all(result.agrees for result in results)
    assert {result.operator for result in results if result.backend == "native"} == set(schemas.SCHEMAS)


def test_of_triton_it_compares_every_operator_on_few_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels do not run here, so the reference stands in: all that counts is what is asked."""
    monkeypatch.setattr(selection, "operators_of", lambda name: selection.REFERENCE)
    monkeypatch.setattr(selfcheck, "backends", lambda: [selfcheck.Backend("triton", ("cpu",), {})])
    results = selfcheck.run()
    assert {result.operator for result in results} == set(schemas.SCHEMAS)
    assert len({result.case.removesuffix(", soft").removesuffix(", bias and residual") for result in results}) == 2


@pytest.mark.slow
def test_reference_on_request_gives_the_reason() -> None:
    result = run(DRELUOP_BACKEND="reference")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "not cpu: not loaded: DRELUOP_BACKEND=reference" in result.stdout
    assert "cpu tensors  are served by reference (DRELUOP_BACKEND=reference)" in result.stdout
    assert "nothing to compare" in result.stdout


@pytest.mark.slow
def test_unknown_backend_is_an_error() -> None:
    result = run(DRELUOP_BACKEND="torch")
    assert result.returncode != 0
    assert 'DRELUOP_BACKEND: got "torch"; expected "native", "triton" or "reference"' in result.stderr


@pytest.mark.slow
def test_a_backend_on_request_that_serves_nothing_here_is_said_so() -> None:
    result = run(DRELUOP_BACKEND="triton", TRITON_INTERPRET="0")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "cpu tensors  are an error (DRELUOP_BACKEND=triton, which does not serve them)" in result.stdout
    assert "not cpu: Triton has no CPU kernels" in result.stdout


@pytest.mark.parametrize("operator", ["capped_relu", "capped_relu_backward", "cap_saturation", "cap_penalty"])
def test_a_mismatch_is_printed_and_is_exit_code_1(
    operator: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    native_or_skip()
    calls = selection.operators_of("native")
    right = getattr(calls, operator)

    def wrong(*arguments: object) -> object:
        result = right(*arguments)
        first = result[0] if isinstance(result, tuple) else result
        first.add_(1)
        return result

    monkeypatch.setattr(calls, operator, wrong)
    assert command.main([]) == 1
    assert f"MISMATCH     native {operator}:" in capsys.readouterr().out


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    """The package without its compiled files."""
    shutil.copytree(PACKAGE, tmp_path / "dreluop", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


USE = "import torch, dreluop; print(dreluop.capped_relu(torch.tensor([-1.0, 0.5, 3.0]), 1.0).tolist())"


@pytest.mark.slow
def test_without_the_native_part_the_reference_serves(copied_package: Path) -> None:
    result = run(path=copied_package)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{copied_package}/dreluop/_ops.abi3.so does not exist" in result.stdout
    assert run(program=USE, path=copied_package).stdout == "[0.0, 0.5, 1.0]\n"


@pytest.mark.slow
def test_a_native_part_that_does_not_load_shows_the_real_error(copied_package: Path) -> None:
    (copied_package / "dreluop" / "_ops.abi3.so").write_bytes(b"no library")
    result = run(path=copied_package)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "file too short" in result.stdout or "invalid ELF header" in result.stdout
    assert run(program=USE, path=copied_package).stdout == "[0.0, 0.5, 1.0]\n"


@pytest.mark.slow
def test_native_on_request_fails_where_it_does_not_load(copied_package: Path) -> None:
    result = run(path=copied_package, DRELUOP_BACKEND="native")
    assert result.returncode != 0
    assert "DRELUOP_BACKEND=native, but the compiled operators do not load" in result.stderr
    assert "_ops.abi3.so does not exist" in result.stderr
