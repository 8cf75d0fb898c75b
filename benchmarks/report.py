"""Write the measured tables into the documents, and draw the pictures, from the result files only.

`python -m benchmarks.report`; with `--check`, it fails where a table or a picture is not what the files give.

A document marks where each report goes, and what stands between the marks is replaced:

    <!-- report:kernels:begin -->
    <!-- report:kernels:end -->
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from benchmarks.compiled import tables as compiled_tables
from benchmarks.compiled import triton_op
from benchmarks.gpu import profile as profiles
from benchmarks.gpu import tables as gpu_tables
from benchmarks.gpu.document import Document as GpuDocument
from benchmarks.harness import machine
from benchmarks.harness.entry import exit_with
from benchmarks.harness.table import Table, markdown
from benchmarks.kernels import tables
from benchmarks.models import tables as models_tables
from benchmarks.models.document import FILE_NAME as MODELS_FILE_NAME
from benchmarks.models.document import Document as ModelsDocument
from benchmarks.pictures import gallery
from benchmarks.scaling import tables as scaling_tables
from benchmarks.scaling.document import FILE_NAME as SCALING_FILE_NAME
from benchmarks.surgery import tables as surgery_tables
from studies.drelu_paper.report import pages as studies
from studies.drelu_paper.statistics import tables as statistics_tables
from tools.wheels import document as wheels_document

ROOT = Path(__file__).parent.parent


def kernels(folder: Path) -> str:
    """The kernels report: for each device, the targets and our times per input."""
    documents = [document for document in _documents(folder) if not _is_of_gpu(document)]
    if not documents:
        return NOTHING
    return "\n\n".join([*map(_device_report, documents), KERNELS_LEGEND])


def gpu(folder: Path) -> str:
    """The same for the documents of ``benchmarks.gpu``."""
    return _of_gpus(folder, gpu_tables.target_table, gpu_tables.case_table)


def gpu_targets(folder: Path) -> str:
    """Of those, the targets alone."""
    return _of_gpus(folder, gpu_tables.target_table)


def _of_gpus(folder: Path, *parts: Callable[[GpuDocument], Table]) -> str:
    documents = [cast(GpuDocument, document) for document in _documents(folder) if _is_of_gpu(document)]
    if not documents:
        return NOTHING
    found = [
        "\n\n".join([f"{gpu_tables.headline(one)}.", *(markdown(part(one)) for part in parts)]) for one in documents
    ]
    return "\n\n".join([*found, gpu_tables.LEGEND])


def models(folder: Path) -> str:
    """The same for the documents of ``benchmarks.models``."""
    documents = [cast(ModelsDocument, document) for document in _documents(folder, MODELS_FILE_NAME)]
    if not documents:
        return NOTHING
    return "\n\n".join([*map(_models_report, documents), models_tables.LEGEND])


def _documents(folder: Path, name: str = machine.FILE_NAME) -> list[machine.Document]:
    return [machine.load(path) for path in sorted(folder.glob(f"*/{name}"))]


def _is_of_gpu(document: machine.Document) -> bool:
    return document["device"].get("type") == "cuda"


NOTHING = "Nothing has been measured yet."


KERNELS_LEGEND = (
    "Times are medians; the implementations are interleaved in one process, on random data. Much of the time of a "
    "fresh large tensor is page faults, for a clone too; the native kernels ask for large pages, which are fewer. "
    "Floors: `x.clone()` for forward and backward, `y.copy_(x)` in place. "
    "The fewest bytes that can be moved, per element of s bytes, are 2s forward and in place (read x, write y) and 3s "
    "backward (read y and its gradient, write the gradient of x). Ratios to a floor: smaller is better. "
    "Ratios to ours: the other's forward + backward over ours, larger is better."
)


def _device_report(document: machine.Document) -> str:
    facts = "; ".join(tell(document) for tell in (tables.headline, tables.noise, tables.page_faults))
    return "\n\n".join(
        [
            f"{facts}.",
            markdown(tables.target_table(document)),
            markdown(tables.case_table(document)),
        ]
    )


def wheels(folder: Path) -> str:
    """Which wheels were tried in which environments, for each device."""
    documents = _documents(folder, wheels_document.FILE_NAME)
    if not documents:
        return NOTHING
    return "\n\n".join([*map(_wheels_report, documents), wheels_document.LEGEND])


def _wheels_report(document: Any) -> str:
    parts = (wheels_document.wheel_table(document), wheels_document.environment_table(document))
    return "\n\n".join([f"{wheels_document.headline(document)}.", *map(markdown, parts)])


def compiled(folder: Path) -> str:
    """Training steps of compiled networks, for each device."""
    documents: list[Any] = [machine.load(path) for path in sorted(folder.glob(f"*/{compiled_tables.FILE_NAME}"))]
    if not documents:
        return NOTHING
    return "\n\n".join(map(_compiled_report, documents))


def _compiled_report(document: Any) -> str:
    first, *others = compiled_tables.all_tables(document)
    parts = [f"**{first.title}** ({compiled_tables.headline(document)})\n\n{markdown(first)}"]
    return "\n\n".join([*parts, *(f"**{table.title}**\n\n{markdown(table)}" for table in others)])


def traced(folder: Path) -> str:
    """Our kernels in a compiled forward pass, opaque and traced, for each GPU."""
    documents = [machine.load(path) for path in sorted(folder.glob(f"*/{triton_op.FILE_NAME}"))]
    if not documents:
        return NOTHING
    found = [(triton_op.headline(one), triton_op.table(one)) for one in documents]
    return "\n\n".join(f"**{table.title}** ({facts})\n\n{markdown(table)}" for facts, table in found)


def profile(folder: Path) -> str:
    """Hardware counters of backward kernels, for each GPU."""
    documents = [machine.load(path) for path in sorted(folder.glob(f"*/{profiles.FILE_NAME}"))]
    if not documents:
        return NOTHING
    return "\n\n".join(f"{profiles.headline(one)}.\n\n{markdown(profiles.table(one))}" for one in documents)


def scaling(folder: Path) -> str:
    """Where the fixed overhead ends, for each device."""
    documents = [machine.load(path) for path in sorted(folder.glob(f"*/{SCALING_FILE_NAME}"))]
    if not documents:
        return NOTHING
    parts = [f"{scaling_tables.headline(one)}.\n\n{markdown(scaling_tables.table(one))}" for one in documents]
    return "\n\n".join([*parts, scaling_tables.LEGEND])


def _models_report(document: ModelsDocument) -> str:
    found = [f"**{table.title}**\n\n{markdown(table)}" for table in models_tables.all_tables(document)]
    return "\n\n".join([f"{models_tables.headline(document)}.", *found])


def surgery(folder: Path) -> str:
    """The sweeps of surgery over whole libraries of networks."""
    documents = [machine.load(path) for name in surgery_tables.FILE_NAMES for path in sorted(folder.glob(f"*/{name}"))]
    if not documents:
        return NOTHING
    facts, table = surgery_tables.headline(documents), surgery_tables.table(documents)
    return f"{facts}.\n\n{markdown(table)}\n\n{surgery_tables.LEGEND}"


REPORTS: dict[str, Callable[[Path], str]] = {
    "kernels": kernels,
    "wheels": wheels,
    "gpu": gpu,
    "gpu-targets": gpu_targets,
    "profile": profile,
    "scaling": scaling,
    "models": models,
    "compiled": compiled,
    "traced": traced,
    "pictures": gallery.markdown,
    "surgery": surgery,
    **statistics_tables.REPORTS,
    **studies.REPORTS,
}


def updated(text: str, folder: Path) -> str:
    """The text with every marked report replaced by what the result files give.

    Raises:
        ValueError: the text marks no report, or has a begin without its end, or a result file is not valid.
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
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
    parser.add_argument("--redraw", action="store_true", help="draw the pictures again that are up to date, too")
    options = parser.parse_args(arguments)
    folder = options.results or machine.RESULTS
    pictures = options.pictures or (gallery.FOLDER if options.results is None else None)
    wrong = [
        found for path in options.documents or marked_documents() if (found := _problem(path, folder, options.check))
    ]
    try:
        if pictures and options.check:
            wrong += gallery.problems(folder, pictures)
        elif pictures:
            for path in gallery.update(folder, pictures, again=options.redraw):
                print(f"drawn: {path}")
    except (OSError, ValueError) as error:
        wrong.append(str(error))
    print("".join(f"{line}\n" for line in wrong), end="", file=sys.stderr)
    return int(bool(wrong))


def marked_documents() -> list[Path]:
    """README.md, and the documents of docs/ and the READMEs of benchmarks/ and studies/ that mark a report."""
    readmes = [path for folder in ("benchmarks", "studies") for path in sorted((ROOT / folder).rglob("README.md"))]
    docs = [*sorted((ROOT / "docs").glob("*.md")), *readmes]
    return [ROOT / "README.md", *(path for path in docs if "<!-- report:" in path.read_text())]


def _problem(path: Path, folder: Path, only_check: bool) -> str | None:
    """Write one document; what is wrong if it could not be, or is not up to date."""
    try:
        old = path.read_text()
        new = updated(old, folder)
    except (OSError, ValueError) as error:
        return f"{path}: {error}"
    if old != new and only_check:
        return f"{path}: not what the result files give; {gallery.RUN}"
    if old != new:
        path.write_text(new)
    return None


if __name__ == "__main__":
    exit_with(main)
