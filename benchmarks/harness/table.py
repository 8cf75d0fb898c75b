"""Tables of text, for the terminal and for documents alike."""

from __future__ import annotations

from dataclasses import dataclass

DTYPES = {"float32": "fp32", "float64": "fp64", "float16": "fp16", "bfloat16": "bf16"}
MISSING = "-"


@dataclass(frozen=True)
class Table:
    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def markdown(table: Table) -> str:
    """A GitHub-flavored table."""
    lines = [table.header, tuple("---" for _ in table.header), *table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def size_name(size: int) -> str:
    """Bytes as a whole number of GB, MB or KB."""
    for power, unit in ((30, "GB"), (20, "MB"), (10, "KB")):
        if size >= 2**power:
            return f"{size >> power} {unit}"
    return f"{size} B"
