"""The wheel and the source archive: what is in them, and that the wheel's types are seen where it is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.wheels import build

ROOT = Path(__file__).parents[2]
# What the archive lacks of what git has: this host's own, and what was measured.
NOT_IN_THE_ARCHIVE = (".ci/", ".github/", ".gitignore", "benchmarks/results/", "docs/pictures/")
METADATA = ("PKG-INFO", "setup.cfg", "dreluop.egg-info/")


def git(*arguments: str) -> list[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def tracked() -> Iterator[str]:
    # With those that are about to be added.
    for name in git("ls-files", "--cached", "--others", "--exclude-standard"):
        if (ROOT / name).exists():
            yield name


def test_the_archive_has_every_source(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    wanted = {name for name in tracked() if not name.startswith(NOT_IN_THE_ARCHIVE)}
    assert {name for name in names if not name.startswith(METADATA)} == wanted


def test_the_wheel_has_the_package_and_its_types(unpacked: Path) -> None:
    names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    ending = sysconfig.get_config_var("EXT_SUFFIX")
    compiled = {"dreluop/_ops.abi3.so", f"dreluop/_C{ending}", f"dreluop/_autograd{ending}"}
    sources = {name for name in tracked() if name.startswith("dreluop/")}
    assert {"dreluop/py.typed", "dreluop/_C.pyi", "dreluop/_autograd.pyi"} <= sources
    assert {name for name in names if ".dist-info/" not in name} == sources | compiled


def test_the_wheel_is_of_this_python_and_of_systems_beside_this_one(built: tuple[Path, Path]) -> None:
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert re.search(rf"-{version}-{version}-manylinux_2_\d+_{os.uname().machine}\.whl$", built[0].name)


def test_nothing_of_torch_is_copied_into_the_wheel(unpacked: Path) -> None:
    assert not list(unpacked.glob("*.libs"))
    assert {path.parent.name for path in unpacked.rglob("*.so*")} == {"dreluop"}


def test_another_folder_than_the_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source: got .*; expected a folder with pyproject.toml"):
        build.build(tmp_path, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_the_node_of_the_wheel_serves_the_torch_that_it_was_built_with(installed: Path, tmp_path: Path) -> None:
    program = "from dreluop.autograd import fast_path as node; print(node.reason, node.__file__)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    said = subprocess.run(
        [installed, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    reason, _, file = said.strip().partition(" ")
    assert reason == "None", said
    assert Path(file).is_relative_to(installed.parents[1])


USER = """
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import dreluop
from dreluop.diagnostics import SaturationMonitor
from dreluop.surgery import Report, replace_activations

x, cap = torch.randn(4, 8), torch.ones(8)
assert_type(dreluop.capped_relu(x, cap), Tensor)
assert_type(dreluop.capped_relu(x, cap, balancer=0.1), tuple[Tensor, Tensor])
assert_type(dreluop.cap_penalty([cap], balancer=0.1), Tensor)
assert_type(dreluop.saturation(x, cap), dreluop.Saturation)
layer = dreluop.DReLU(8, init=2.0)
assert_type(layer.forward(x), Tensor)
assert_type(dreluop.available_backends(), tuple[str, ...])
with dreluop.use_backend("reference"):
    monitor = SaturationMonitor(nn.Sequential(layer))
assert_type(replace_activations(nn.Sequential(nn.ReLU())), Report)
"""
MISTAKES = {
    'dreluop.capped_relu(torch.ones(3), cap="1")': "call-overload",
    'dreluop.DReLU("three")': "arg-type",
    'dreluop.use_backend("cudnn")': "arg-type",
    "dreluop.capped_relu(torch.ones(3), torch.ones(3), unknown=1)": "call-overload",
}


def mypy(python: Path, script: Path) -> str:
    # Its own configuration would make it look at the checkout.
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--python-executable={python}", script]
    cache = f"--cache-dir={ROOT / '.mypy_cache' / 'wheel'}"
    return subprocess.run(
        [*command, cache], cwd=script.parent, capture_output=True, text=True, check=False
    ).stdout.strip()


def test_a_strict_users_script_is_typed(installed: Path, tmp_path: Path) -> None:
    script = tmp_path / "user.py"
    mistakes = "".join(f"{mistake}\n" for mistake in MISTAKES)
    script.write_text(USER + mistakes)
    said = mypy(installed, script)
    found = {
        (int(line), mask) for line, mask in re.findall(r"user\.py:(\d+): error: .*\[([\w-]+)\]$", said, re.MULTILINE)
    }
    first = USER.count("\n") + 1
    assert found == {(first + i, mask) for i, mask in enumerate(MISTAKES.values())}, said
