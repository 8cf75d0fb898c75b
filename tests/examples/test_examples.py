"""Every example runs as a user runs it, and prints what it shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.optional import torchvision_or_skip
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name != "__init__.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# With the arguments of Python before it, and those of its own.
EXAMPLES = {
    "quickstart": ((), (), "caps 5.00 -> "),
    "surgery_torchvision": ((), (), "the network without dreluop gives the same outputs"),
    "compile_and_export": ((), (), "exported: the program from the file gives the model's outputs"),
    "fixed_caps_from_data": ((), (), "capped: accuracy 100.0%"),
    "protect_against_bit_flips": ((), (), "protected, flipped, repaired: 9"),
    "honest_evaluation": ((), (), "accuracy under straight through the cap"),
    "distributed_fsdp2": (TORCHRUN, (), "fsdp2, 2 processes: the same as one process"),
    "distributed_fsdp2, ddp": (TORCHRUN, ("--engine", "ddp"), "ddp, 2 processes: the same as one process"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, tmp_path: Path) -> None:
    if name == "surgery_torchvision":
        torchvision_or_skip()
    launcher, arguments, expected = EXAMPLES[name]
    script = ROOT / "examples" / f"{name.partition(',')[0]}.py"
    done = subprocess.run(
        [sys.executable, *launcher, script, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert expected in done.stdout


def test_every_script_is_run() -> None:
    assert {path.stem for path in SCRIPTS} == {name.partition(",")[0] for name in EXAMPLES}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_short_and_use_only_torch_and_dreluop(script: Path) -> None:
    text = script.read_text()
    assert len(text.splitlines()) < 120
    assert "benchmarks" not in text and "tests" not in text
