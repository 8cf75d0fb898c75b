"""`python -m benchmarks.robustness stats`: the tests over a paper's table or over results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from benchmarks.harness import files, machine
from benchmarks.harness.files import folder_argument
from benchmarks.harness.table import console, printable
from benchmarks.robustness.paper.tables import NUMBERS
from benchmarks.robustness.statistics import document as d
from benchmarks.robustness.statistics import frames, tables
from benchmarks.robustness.statistics.names import ACCURACIES, FILE_NAME

ALL = "all"
USAGE = 2
# Gives the frame that frames.blocks_by_methods takes.
Load = Callable[[Path], pd.DataFrame]


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV file with a header.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read.
    """
    try:
        return pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no valid CSV: {error}") from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that ``run`` reads."""
    parser.add_argument("results", type=Path, nargs="?", help="results: a block, a method and an accuracy per row")
    parser.add_argument(
        "--paper-table", choices=[*map(str, NUMBERS), ALL], help="instead: a table that the paper prints"
    )
    parser.add_argument("--alpha", type=float, default=0.05, help="level of significance (default: 0.05)")
    parser.add_argument(
        "--missing",
        choices=frames.MISSING,
        default="error",
        help="where a method has no accuracy in a block: stop (default), or leave the block out and say so",
    )
    parser.add_argument(
        "--output", type=folder_argument, help=f"folder for {FILE_NAME} and the critical-difference diagrams"
    )


def run(options: argparse.Namespace, load: Load = read_csv, basis: str = ACCURACIES) -> int:
    """Print the tables, and write the files if asked to.

    Args:
        options: of a parser with ``add_arguments``.
        load: reads ``options.results``.
        basis: what the accuracies there are, in words.

    Returns:
        0; 2, with the reason on stderr, if the arguments or the results are not valid.
    """
    if (options.results is None) == (options.paper_table is None):
        print("expected either results or --paper-table", file=sys.stderr)
        return USAGE
    try:
        document = _document(options, load, basis)
        for table in tables.all_tables(document):
            console().print(printable(table))
        if options.output:
            _write(document, options.output)
    except BrokenPipeError:
        raise
    except (OSError, TypeError, ValueError) as error:
        print(error, file=sys.stderr)
        return USAGE
    return 0


def _document(options: argparse.Namespace, load: Load, basis: str) -> d.Document:
    if options.results is None:
        numbers = NUMBERS if options.paper_table == ALL else [int(options.paper_table)]
        return d.of_paper(numbers, options.alpha, options.missing)
    accuracies = frames.blocks_by_methods(load(options.results))
    return d.of_results(accuracies, options.results.stem, options.alpha, options.missing, basis)


def _write(document: d.Document, folder: Path) -> None:
    from benchmarks.robustness.statistics import picture  # noqa: PLC0415 (matplotlib is slow to import)

    files.save_document(document, folder / FILE_NAME)
    written = [folder / FILE_NAME]
    for subject in dict.fromkeys(one["subject"] for one in document["comparisons"]):
        shown = [one for one in document["comparisons"] if one["subject"] == subject and one["nemenyi"]]
        if shown:  # Two methods have no diagram.
            written.append(folder / f"critical-difference-{machine.slug(subject)}.png")
            picture.write(picture.figure_of(shown), written[-1])
    print("".join(f"written: {path}\n" for path in written), end="")
