"""The torchrun example, in its quick form, with both engines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from examples.distributed_fsdp2 import ENGINES
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[2]


def test_both_engines_give_what_one_process_gives() -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "examples.distributed_fsdp2", "--quick", "--engine", *ENGINES],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for engine in ENGINES:
        assert f"{engine}: the same as one process" in done.stdout
