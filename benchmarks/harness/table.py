"""Tables of text, for the terminal and for documents alike: declared by columns, made from the rows of a record."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.harness.machine import DTYPES, commit_name, is_gpu
from benchmarks.harness.records import Record

if TYPE_CHECKING:
    import pandas as pd
    import rich.console
    import rich.table

MISSING = "-"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def markdown(table: Table) -> str:
    """A GitHub-flavored table."""
    lines = [table.header, tuple("---" for _ in table.header), *table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def titled(table: Table, facts: str = "") -> str:
    """A table below its title, for a document."""
    return f"**{table.title}**{f' ({facts})' if facts else ''}\n\n{markdown(table)}"


def size_name(size: int) -> str:
    """Bytes as a whole number of GB, MB or KB."""
    for power, unit in ((30, "GB"), (20, "MB"), (10, "KB")):
        if size >= 2**power:
            return f"{size >> power} {unit}"
    return f"{size} B"


def shape_name(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def is_known(value: Any) -> bool:
    """Whether a value of a frame is one: what is not in a record is None or NaN."""
    return value is not None and bool(value == value)  # noqa: PLR0124


@dataclass(frozen=True)
class Column:
    """A column of ``pivot``: the cell of the row with these values, where the group has one.

    Attributes:
        value: a field, or what makes one of a row; none where it gives None or NaN.
        form: how it is written: for ``str.format``.
    """

    title: str
    value: str | Callable[[Row], Any]
    form: str = "{}"
    where: Mapping[str, Any] = field(default_factory=dict)

    def cell(self, group: pd.DataFrame) -> str:
        rows = matching(group, self.where)
        if rows.empty:
            return MISSING
        row = rows.iloc[0]
        value = self.value(row) if callable(self.value) else row.get(self.value)
        return self.form.format(value) if is_known(value) else MISSING


def matching(frame: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """The rows with these values; a tuple holds several, of which each will do."""
    for name, value in where.items():
        frame = frame[frame[name].isin(value if isinstance(value, tuple) else (value,))]
    return frame


def pivot(
    title: str, frame: pd.DataFrame, by: Sequence[str], columns: Sequence[Column], *, known: Sequence[str] = ()
) -> Table:
    """A line for each group of rows with the same values of ``by``, in the order in which they come.

    Args:
        known: titles of columns; a line without a value in any of them is left out.
    """
    header = tuple(column.title for column in columns)
    if frame.empty:
        return Table(title, header, [])
    groups = frame.groupby(list(by), sort=False, dropna=False)
    rows = [tuple(column.cell(group) for column in columns) for _, group in groups]
    needed = [header.index(name) for name in known]
    return Table(title, header, [row for row in rows if not needed or any(row[i] != MISSING for i in needed)])


def against(frame: pd.DataFrame, other: str, by: Sequence[str]) -> pd.Series:
    """The time of another implementation over that of each row; NaN where none has the same values of ``by``."""
    times = matching(frame, {"implementation": other}).drop_duplicates(list(by)).set_index(list(by))["ms"]
    found = frame[list(by)].merge(times.rename("other"), how="left", left_on=list(by), right_index=True)["other"]
    return found / frame["ms"]


@dataclass(frozen=True)
class Target:
    """A limit for some rows of ours.

    Attributes:
        subject: what it says in a table, in three cells.
        where: the rows that have to reach it, as for ``matching``.
        value: the field that is limited.
        limit: of it, at least, or at most if ``at_most``.
        select: further says which rows have to reach it.
        noise: a field that is subtracted before comparing.
        form: how a verdict is written, of its row and ``measured``.
    """

    subject: tuple[str, str, str]
    where: Mapping[str, Any]
    value: str
    limit: float
    at_most: bool = False
    select: Callable[[pd.DataFrame], pd.Series] | None = None
    noise: str | None = None
    form: str = "{measured:.2f} ({input}, {dtype})"

    def verdicts(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows that have to reach it and can be evaluated, the worst first, with ``measured`` and ``met``."""
        rows = frame if self.select is None else frame[self.select(frame)]
        rows = matching(rows, self.where)
        rows = rows[rows[self.value].notna()] if self.value in rows else rows.iloc[:0]
        rows = rows.assign(measured=rows[self.value].astype(float) if len(rows) else [])
        compared = rows["measured"] - (rows[self.noise] if self.noise else 0.0)
        met = compared <= self.limit if self.at_most else compared >= self.limit
        return rows.assign(met=met).sort_values("measured", ascending=not self.at_most, kind="stable")


def target_table(header: tuple[str, str, str], targets: Iterable[Target], frame: pd.DataFrame, note: str = "") -> Table:
    """Each target beside what was measured, at worst and at best; the note is added to every outcome."""
    rows: list[tuple[str, ...]] = []
    for target in targets:
        found = target.verdicts(frame)
        if found.empty:
            rows.append((*target.subject, MISSING, MISSING, "not measured"))
            continue
        missed = int((~found["met"]).sum())
        outcome = f"**missed** in {missed} of {len(found)}" if missed else f"yes, {len(found)} of {len(found)}"
        ends = (found.iloc[0].to_dict(), found.iloc[-1].to_dict())
        shown = (target.form.format(**{**row, "dtype": DTYPES.get(row.get("dtype", ""))}) for row in ends)
        rows.append((*target.subject, *shown, outcome + note))
    return Table("Targets", (*header, "worst", "best", "met"), rows)


def hardware(record: Record, detail: str = "") -> str:
    """What was measured on, and, if that is a processor, threads."""
    device = record.run["device"]
    if is_gpu(device):
        return f"{device['name']}{detail}, driver {device['driver'] or 'unknown'}"
    return f"{device['name']}, {device['cores']} cores, {record.run['settings']['threads']} threads"


def software(record: Record) -> str:
    versions, commit = record.run["versions"], commit_name(record.run["commit"])
    return f"torch {versions['torch']}, Python {versions['python']}, dreluop {versions['dreluop']} ({commit})"


def noise(frame: pd.DataFrame, whose: str) -> str:
    """How far the machine's own speed moved."""
    if frame.empty:
        return "nothing measured"
    spreads = sorted((frame["q3_ms"] - frame["q1_ms"]) / frame["ms"])
    return f"noise (distance of {whose}'s quartiles): {spreads[len(spreads) // 2]:.0%}, at most {spreads[-1]:.0%}"


def left_out(record: Record, missing: Sequence[str], quick: str = "quick run: few cases and samples") -> list[str]:
    """What is not in the rows."""
    parts = [quick] if record.run["settings"].get("quick") else []
    if missing:
        parts.append(f"not all cases: {len(missing)} missing")
    if record.failures:
        parts.append(f"{len(record.failures)} implementations not measured")
    return parts


def facts(record: Record, missing: Sequence[str] = (), *more: str, quick: str = "quick run: few cases") -> str:
    """A headline: what measured a record, when, and whether all of it."""
    return "; ".join([hardware(record), software(record), record.when(), *more, *left_out(record, missing, quick)])


def console() -> rich.console.Console:
    """Of standard output; a file or a pipe has no width that tables would have to fit."""
    from rich.console import Console  # noqa: PLC0415 (a machine with a GPU may lack it)

    class Quiet(Console):
        def on_broken_pipe(self) -> None:
            """``exit_with`` ends the command; rich would end it with code 1, by itself."""
            raise  # noqa: PLE0704 (rich calls this while it handles the error)

    return Quiet() if sys.stdout is not None and sys.stdout.isatty() else Quiet(width=200)


def printable(table: Table) -> rich.table.Table:
    """For the console; bold marks of Markdown are left out."""
    import rich.table  # noqa: PLC0415

    printed = rich.table.Table(*table.header, title=table.title, title_justify="left")
    for cells in table.rows:
        printed.add_row(*(cell.replace("**", "") for cell in cells))
    return printed


def show(tables: Iterable[Table]) -> None:
    """Print tables, plainly where rich is not installed."""
    try:
        terminal = console()
    except ImportError:
        print("\n\n".join(f"{table.title}\n\n{markdown(table)}" for table in tables))
    else:
        for table in tables:
            terminal.print(printable(table))
