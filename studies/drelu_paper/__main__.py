"""``python -m studies.drelu_paper run|table|plot|stats``: the paper's experiment, run by run, and what came of it."""

from __future__ import annotations

from benchmarks.harness.entry import exit_with
from studies.drelu_paper.command import main

if __name__ == "__main__":
    exit_with(main)
