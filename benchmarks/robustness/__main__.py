"""``python -m benchmarks.robustness run|table|plot|stats``: the paper's experiment, run by run, and what came of it."""

from __future__ import annotations

import sys

from benchmarks.robustness.command import main

if __name__ == "__main__":
    sys.exit(main())
