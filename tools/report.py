"""Write the measured tables into the documents, and draw the pictures, from the records only.

`python -m tools.report`; with `--check`, it draws nothing and fails where a table is not what the records give.

A document marks where each report goes, and the text between the marks is replaced:

    <!-- report:kernels:begin -->
    <!-- report:kernels:end -->
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    bench_batch_norm,
    bench_compile,
    bench_kernels,
    bench_models,
    bench_pages,
    bench_profile,
    bench_road,
    bench_scaling,
    bench_sites,
    bench_surgery,
    bench_triton_op,
)
from benchmarks.harness import machine, records
from benchmarks.harness.cli import Bench
from benchmarks.harness.entry import exit_with
from benchmarks.harness.files import load_document
from benchmarks.harness.records import Record
from benchmarks.harness.table import Table, markdown, titled
from studies.bit_flips import report as bit_flip_study
from studies.drelu_paper.report import pages as studies
from studies.drelu_paper.statistics import tables as statistics_tables
from studies.drelu_paper.statistics.document import FILE_NAME as STATISTICS_FILE_NAME
from tools.wheels import document as wheels_document

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "pictures"
NOTHING = "Nothing has been measured yet."
RUN = "run python -m tools.report"
# Of each picture of speed and memory, by name: the record that it shows and its title; ``pictures`` draws them.
PICTURES = {
    "roofline": ("kernels", "Share of the floor's bandwidth"),
    "speed-up": ("scaling", "Speed-up and share of the floor over the size of x"),
    "scaling": ("scaling", "Time over the size of x and over the number of caps"),
    "memory-over-depth": ("memory", "Memory kept for backward over the number of layers"),
}

Report = Callable[[Path], str]


def _records(folder: Path, *patterns: str) -> list[Record]:
    return [records.load(path) for pattern in patterns for path in sorted(folder.glob(f"*/{pattern}"))]


def _report(
    bench: Bench, tables: Callable[[Record], Sequence[Table]], legend: str = "", *, on: str = "", titles: bool = False
) -> Report:
    """A report with the headline and tables of every record of a benchmark.

    Args:
        on: only of this kind of device: "cpu" or "cuda".
        titles: whether tables have titles; the first one's then holds the headline, where there is no legend.
    """

    def page(record: Record) -> str:
        facts, found = bench.headline(record), tables(record)
        if titles and not legend:
            return "\n\n".join(titled(table, facts if table is found[0] else "") for table in found)
        return "\n\n".join([f"{facts}.", *((titled if titles else markdown)(table) for table in found)])

    def report(folder: Path) -> str:
        found = _records(folder, bench.file_name)
        found = [one for one in found if on in ("", "cuda" if machine.is_gpu(one.run["device"]) else "cpu")]
        if not found:
            return NOTHING
        return "\n\n".join([*map(page, found), *([legend] if legend else [])])

    return report


def _road(tables: Callable[[Record], Table]) -> Report:
    """A table of how calls come to their kernels."""
    return _of_file(bench_road.FILE_NAME, bench_road.headline, tables)


def _of_file(file_name: str, headline: Callable[[Record], str], table: Callable[[Record], Table]) -> Report:
    def report(folder: Path) -> str:
        found = _records(folder, file_name)
        return "\n\n".join(f"{headline(one)}.\n\n{markdown(table(one))}" for one in found) or NOTHING

    return report


def bit_flips(folder: Path) -> str:
    """The study of bit flips."""
    return bit_flip_study.page(folder) or NOTHING


def wheels(folder: Path) -> str:
    """Which wheels were tried in which environments, for each device."""
    found = [load_document(path) for path in sorted(folder.glob(f"*/{wheels_document.FILE_NAME}"))]
    if not found:
        return NOTHING
    return "\n\n".join([*map(_wheels_report, found), wheels_document.LEGEND])


def _wheels_report(document: Any) -> str:
    parts = (wheels_document.wheel_table(document), wheels_document.environment_table(document))
    return "\n\n".join([f"{wheels_document.headline(document)}.", *map(markdown, parts)])


def surgery(folder: Path) -> str:
    """The sweeps of surgery over whole libraries of networks."""
    found = _records(folder, *bench_surgery.FILES)
    if not found:
        return NOTHING
    facts, table = bench_surgery.library_headline(found), bench_surgery.library_table(found)
    return f"{facts}.\n\n{markdown(table)}\n\n{bench_surgery.LEGEND}"


def _shown(folder: Path) -> list[tuple[str, str, Path]]:
    """The pictures of the records below a folder: kind, title and record."""
    return [
        (kind, title, path)
        for kind, (suite, title) in PICTURES.items()
        for path in sorted(folder.glob(f"*/{suite}{records.SUFFIX}"))
    ]


def pictures(folder: Path) -> str:
    """The pictures of speed and memory for a document in ``docs/``, each with its record."""
    blocks = [
        f"![{title}](pictures/{path.parent.name}-{kind}.png)\n\n"
        f"{title}: `benchmarks/results/{path.parent.name}/{path.name}`."
        for kind, title, path in _shown(folder)
    ]
    return "\n\n".join(blocks) or NOTHING


def draw(results: Path, folder: Path) -> list[Path]:
    """Draw the pictures of all records and studies below ``results``; returns the files written."""
    from benchmarks import pictures as drawing  # noqa: PLC0415 (matplotlib is not needed to check)
    from studies.drelu_paper.statistics import picture  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, _, path in _shown(results):
        written.append(folder / f"{path.parent.name}-{kind}.png")
        drawing.DRAW[kind](records.load(path), written[-1])
    for path in sorted(results.glob(f"*/{STATISTICS_FILE_NAME}")):
        written.append(folder / f"{path.parent.name}-critical-difference.png")
        picture.draw(load_document(path), written[-1])
    for name, draw_study in studies.pictures(results).items():
        written.append(folder / name)
        draw_study(written[-1])
    return written


REPORTS: dict[str, Report] = {
    "kernels": _report(
        bench_kernels.BENCH,
        lambda record: [bench_kernels.targets(record), bench_kernels.case_table(record)],
        bench_kernels.LEGENDS["cpu"],
        on="cpu",
    ),
    "wheels": wheels,
    "gpu": _report(
        bench_kernels.BENCH,
        lambda record: [bench_kernels.targets(record), bench_kernels.case_table(record)],
        bench_kernels.LEGENDS["cuda"],
        on="cuda",
    ),
    "gpu-targets": _report(
        bench_kernels.BENCH,
        lambda record: [bench_kernels.targets(record)],
        bench_kernels.LEGENDS["cuda"],
        on="cuda",
    ),
    "profile": _report(bench_profile.BENCH, bench_profile.tables),
    "scaling": _report(bench_scaling.BENCH, bench_scaling.BENCH.tables, bench_scaling.LEGEND),
    "models": _report(bench_models.BENCH, bench_models.tables, bench_models.LEGEND, titles=True),
    "compiled": _report(bench_compile.BENCH, bench_compile.tables, titles=True),
    "traced": _report(bench_triton_op.BENCH, bench_triton_op.tables, titles=True),
    "road": _road(bench_road.call_table),
    "derivatives": _road(bench_road.derivative_table),
    "sites": _of_file(bench_sites.FILE_NAME, bench_sites.headline, bench_sites.table),
    "batch-norm": _of_file(bench_batch_norm.FILE_NAME, bench_batch_norm.headline, bench_batch_norm.table),
    "pages": _of_file(bench_pages.FILE_NAME, bench_pages.headline, bench_pages.table),
    "bit-flips": bit_flips,
    "pictures": pictures,
    **statistics_tables.REPORTS,
    "surgery": surgery,
    **studies.REPORTS,
}


def updated(text: str, folder: Path) -> str:
    """The text with every marked report replaced by what the records give.

    Raises:
        ValueError: the text marks no report, or has a begin without its end, or a record is not valid.
    """
    found = False
    for name, report in REPORTS.items():
        begin, end = f"<!-- report:{name}:begin -->", f"<!-- report:{name}:end -->"
        counts = text.count(begin), text.count(end)
        if counts == (0, 0):
            continue
        if counts != (1, 1) or text.index(begin) > text.index(end):
            raise ValueError(f"document: expected one {begin!r} before one {end!r}; got {counts[0]} and {counts[1]}")
        found = True
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{report(folder)}\n\n{end}{rest.split(end)[1]}"
    if not found:
        raise ValueError(f"document: marks none of the reports {', '.join(REPORTS)}: <!-- report:NAME:begin -->")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__.splitlines()[0])
    parser.add_argument(
        "documents",
        type=Path,
        nargs="*",
        help="default: README.md, and those of docs/ and benchmarks/ that mark a report",
    )
    parser.add_argument("--results", type=Path, help="default: benchmarks/results")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a document is not up to date")
    parser.add_argument(
        "--pictures", type=Path, help="their folder; default: docs/pictures, and none where --results is given"
    )
    options = parser.parse_args(arguments)
    folder = options.results or machine.RESULTS
    wrong = [
        found for path in options.documents or marked_documents() if (found := _problem(path, folder, options.check))
    ]
    drawn = options.pictures or (FOLDER if options.results is None else None)
    try:
        for path in draw(folder, drawn) if drawn and not options.check else ():
            print(f"drawn: {path}")
    except (OSError, ValueError) as error:
        wrong.append(str(error))
    print("".join(f"{line}\n" for line in wrong), end="", file=sys.stderr)
    return int(bool(wrong))


def marked_documents() -> list[Path]:
    """README.md, and the documents of docs/ and the READMEs of benchmarks/ that mark a report."""
    docs = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").rglob("README.md"))]
    return [ROOT / "README.md", *(path for path in docs if "<!-- report:" in path.read_text())]


def _problem(path: Path, folder: Path, only_check: bool) -> str | None:
    """Write one document; what is wrong if it could not be, or is not up to date."""
    try:
        old = path.read_text()
        new = updated(old, folder)
    except (OSError, ValueError) as error:
        return f"{path}: {error}"
    if old != new and only_check:
        return f"{path}: not what the records give; {RUN}"
    if old != new:
        path.write_text(new)
    return None


if __name__ == "__main__":
    exit_with(main)
