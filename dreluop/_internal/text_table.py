"""Plain text tables."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, two spaces apart; numbers to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    columns = range(len(header))
    widths = [max(len(line[column]) for line in lines) for column in columns]
    numeric = [all(_is_number(row[column]) for row in rows) for column in columns]
    padded = ([line[c].rjust(widths[c]) if numeric[c] else line[c].ljust(widths[c]) for c in columns] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def _is_number(cell: str) -> bool:
    try:
        float(cell.rstrip(" %"))
    except ValueError:
        return cell == "-"
    return True
