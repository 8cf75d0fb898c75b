"""Command line: `python -m tools.wheels --help`."""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.harness.entry import exit_with
from tools.wheels.build import ROOT, build


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.wheels", description="Build wheels, and try them.")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="the source archive and the wheel of this Python; DRELUOP_BUILD chooses")
    make.add_argument("--output", type=Path, default=ROOT / "dist", help="default: dist/")
    tried = commands.add_parser("try", help="the operator tests in fresh environments without a compiler")
    tried.add_argument("wheels", type=Path, help="the folder with the wheels; each Python takes the one that fits")
    tried.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters; default: this one")
    tried.add_argument(
        "--torch", nargs="+", default=["2.11.0", "newest"], help='versions, or "newest"; default: 2.11.0 newest'
    )
    tried.add_argument("--output", type=Path, help="default: benchmarks/results/<device>/wheels.json")
    options = parser.parse_args(arguments)
    if options.command == "build":
        return _build(options.output)
    if not list(options.wheels.glob("*.whl")):
        parser.error(f"wheels: got {options.wheels}; expected a folder with wheels")
    return _try(options.wheels.resolve(), options.python, options.torch, options.output)


def _build(output: Path) -> int:
    try:
        written = build(ROOT, output)
    except (subprocess.CalledProcessError, ValueError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    print(*(f"written: {path} ({path.stat().st_size} bytes)" for path in written), sep="\n")
    return 0


def _try(wheels: Path, pythons: Sequence[str], torches: Sequence[str], output: Path | None) -> int:
    from benchmarks.harness import files, machine  # noqa: PLC0415 (imports torch, which `build` need not)
    from tools.wheels import document, environments  # noqa: PLC0415

    found = document.new_document(sorted(wheels.glob("*.whl")))
    path = output or machine.folder_of(found["device"]) / document.FILE_NAME
    if path.exists():
        found["rows"] = document.rows_of_the_same_wheels(path, found)
    failed = False
    for python, torch in itertools.product(pythons, torches):
        row = environments.run_case(python, torch, wheels)
        failed |= row.failure is not None
        outcome = row.failure or f"{row.passed} passed, {sum(row.skipped.values())} skipped"
        print(f"{Path(python).name}, torch {torch}: Python {row.python}, torch {row.torch}: {outcome}", flush=True)
        document.put(found["rows"], asdict(row))
        files.save_document(found, path)
    print(f"written: {path}")
    return int(failed)


if __name__ == "__main__":
    exit_with(main)
