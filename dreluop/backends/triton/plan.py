"""How a pass over an activation is cut into Triton programs: pure arithmetic, as csrc/include/dreluop/cuda_plan.h is.

A program handles a tile of vecs; a vector is `vec_of(itemsize)` elements that one thread reads and writes with
16-byte accesses. Masks go by whole vectors wherever possible, so that odd sizes keep these accesses.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

# A network calls with the same few shapes again and again, and a small tensor feels the time that a plan takes.
remembered = functools.lru_cache(maxsize=1024)

MOST_PROGRAMS = 2**31 - 1
LEAST_ROWS = 32  # of a program that shares its caps: keeps the partial sums few
LEAST_WIDTH = 32  # vecs side by side: whole lines of memory


@dataclass(frozen=True)
class Tuning:
    """Launch parameters. ``*_tile``: vecs of a program at a time; ``*_warps``: warps of a program.

    ``*_programs``: programs that a multiprocessor holds at once, given what registers allow. ``waves``: rounds of
    programs where one is not enough (the last may be part empty).
    """

    flat_tile: int = 256
    flat_warps: int = 4
    row_tile: int = 256
    row_warps: int = 4
    row_programs: int = 7
    column_tile: int = 128
    column_warps: int = 4
    column_programs: int = 6
    waves: int = 4

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: got {value!r}; expected a whole number >= 1")
            if not name.endswith(("programs", "waves")) and value & (value - 1):
                raise ValueError(f"{name}: got {value}; expected a power of two")
        for kind in ("flat", "row", "column"):
            threads, tile = 32 * getattr(self, f"{kind}_warps"), getattr(self, f"{kind}_tile")
            if threads > 1024 or not threads <= tile <= 32 * threads:
                raise ValueError(
                    f"{kind}_tile: got {tile} vecs for {threads} threads; expected 1 to 32 for each of at most 1024"
                )


LARGEST_TILE = 32 * 1024  # vecs


# One thread, whatever the number of warps: few programs of large tiles.
INTERPRETER = Tuning(flat_tile=1024, row_tile=1024, column_tile=1024, row_programs=2, column_programs=2, waves=1)


@dataclass(frozen=True)
class Layout:
    """x, traversed in some order, as (outer, caps, inner): element i uses cap ``(i // inner) % caps``."""

    outer: int
    caps: int
    inner: int

    @property
    def numel(self) -> int:
        return self.outer * self.caps * self.inner

    @property
    def period(self) -> int:
        return self.caps * self.inner

    def merged(self) -> Layout:
        """One cap is one run, whatever the layout that it came from."""
        return Layout(1, 1, self.outer * self.inner) if self.caps == 1 else self


def vec_of(itemsize: int) -> int:
    """Elements of a vector: at least four, so that the packed regions of a vector are whole bytes."""
    return 8 if itemsize == 2 else 4


def up_to(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The least one that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def checked_programs(programs: int) -> int:
    if programs > MOST_PROGRAMS:
        raise ValueError(f"x: too many elements for one launch: {programs} programs, at most {MOST_PROGRAMS}")
    return programs


# How an elementwise pass finds the caps of a vector.
ONE = 0  # a single cap
SPAN = 1  # a vector is in one run of `inner` elements, or crosses the border of two
ALIGNED = 2  # one cap per element, vectors never wrap around, and the caps are contiguous
RING = 3  # one cap per element, and a vector wraps around at most once
EACH = 4  # any other


def cap_mode(vec: int, layout: Layout, *, side_by_side: bool) -> int:
    if layout.caps == 1:
        return ONE
    if layout.inner >= vec:
        return SPAN
    if layout.inner == 1 and layout.caps % vec == 0 and side_by_side:
        return ALIGNED
    return RING if layout.inner == 1 and layout.caps >= vec else EACH


@dataclass(frozen=True)
class FlatPlan:
    """Elementwise passes: program p takes the vecs ``[p * tile, (p + 1) * tile)``; the first `full` need no mask."""

    numel: int
    tile: int
    full: int
    programs: int


@remembered
def flat_plan(vec: int, numel: int, tile: int) -> FlatPlan:
    # A small tensor needs no wider program than it has vecs.
    tile = min(tile, power_of_two(up_to(max(1, numel), vec)))
    return FlatPlan(numel, tile, numel // (tile * vec), checked_programs(up_to(numel, tile * vec)))


def splits_wanted(sets: int, resident: int, waves: int) -> int:
    """Programs for each of `sets`: one round of programs if that fills the device well, else several."""
    return resident // sets if sets * waves <= resident else up_to(waves * resident, sets)


@dataclass(frozen=True)
class RowPlan:
    """Runs of one cap. A cap has outer * segments_per_run segments, each a stretch of one run.

    A program sums the segments ``[split * per_split, (split + 1) * per_split)`` of one cap, `runs` segments at a time,
    each spread over `width` vecs. Program b has cap ``b % caps``, split ``b // caps``. Unless a run is whole
    vectors, the elements before its first and after its last whole vector are read one by one (`edges`).
    """

    segment_size: int
    segments_per_run: int
    segments: int
    width: int
    runs: int
    per_split: int
    splits: int
    programs: int
    edges: bool


def row_plan(vec: int, layout: Layout, processors: int, tuning: Tuning) -> RowPlan:
    segment_size = max(1, min(layout.inner, tuning.row_tile * vec))
    segments_per_run = up_to(layout.inner, segment_size)
    segments = layout.outer * segments_per_run
    width = power_of_two(up_to(segment_size, vec))
    runs = max(1, min(tuning.row_tile // width, power_of_two(max(1, segments))))
    wanted = splits_wanted(layout.caps, tuning.row_programs * processors, tuning.waves)
    per_split = up_to(max(1, segments), max(1, min(wanted, up_to(segments, runs))))
    per_split = up_to(per_split, runs) * runs
    splits = max(1, up_to(segments, per_split))
    return RowPlan(
        segment_size, segments_per_run, segments, width, runs, per_split, splits,
        checked_programs(layout.caps * splits),
        edges=layout.inner % vec != 0,
    )  # fmt: skip


@dataclass(frozen=True)
class ColumnPlan:
    """Elements in traversal order as rows of ``row = repeat * caps * inner`` elements: whole vectors; the last may be
    cut.

    A program sums each of `width` vecs of columns over `per_program` rows, two by `height` rows at a time. Program b
    has tile ``b % tiles``, row block ``b // tiles``.
    """

    repeat: int
    row: int
    rows: int
    vecs: int
    width: int
    height: int
    tiles: int
    per_program: int
    row_blocks: int
    programs: int


def column_plan(vec: int, layout: Layout, processors: int, tuning: Tuning) -> ColumnPlan:
    least = vec // math.gcd(layout.period, vec)
    repeat = least
    if least > 1:
        # Narrow rows side by side, as long as some stay one below the other: they need a second launch anyway.
        repeat *= max(1, min(up_to(LEAST_WIDTH * vec, least * layout.period), layout.outer // least))
    row = repeat * layout.period
    rows, vecs = up_to(layout.numel, row), row // vec
    few_rows = up_to(tuning.column_tile, rows)
    width = min(power_of_two(vecs), tuning.column_tile, power_of_two(max(LEAST_WIDTH, few_rows)))
    height = min(tuning.column_tile // width, power_of_two(rows))
    tiles = up_to(vecs, width)
    wanted = splits_wanted(tiles, tuning.column_programs * processors, tuning.waves)
    per_program = max(LEAST_ROWS, 2 * height, up_to(rows, max(1, wanted)))
    per_program = up_to(per_program, height) * height
    row_blocks = up_to(rows, per_program)
    return ColumnPlan(
        repeat, row, rows, vecs, width, height, tiles, per_program, row_blocks, checked_programs(tiles * row_blocks)
    )


@dataclass(frozen=True)
class BackwardPlan:
    """Rows or columns; what the sums need beside the launch.

    `blocks` programs share a column (a cap, if by rows): as many partial sums each, of `columns` columns, none if the
    program that sums also finishes. The last of each of `counters` sets of programs finishes, unless that takes a
    `second_launch`, with `inner` columns of each of `repeat` rows side by side to a cap.
    """

    rows: RowPlan | None
    columns: ColumnPlan | None
    sum_columns: int
    blocks: int
    partials: int
    counters: int
    second_launch: bool
    repeat: int
    inner: int
    programs: int


def runs_by_rows(vec: int, layout: Layout) -> bool:
    return layout.caps == 1 or layout.inner >= vec or layout.numel == 0


def needs_64_bits(vec: int, layout: Layout, reach: int) -> bool:
    """Whether a kernel forms a number of an element, or an offset up to `reach`, that 32 bits do not hold.

    Numbers go beyond the last element before they are masked: to the end of a tile, or of a row of columns that is cut.
    """
    beyond = LARGEST_TILE * vec + (0 if runs_by_rows(vec, layout) else vec * layout.period)
    return max(layout.numel, reach) + beyond >= 2**31


@remembered
def backward_plan(
    vec: int, layout: Layout, processors: int, tuning: Tuning, *, one_cap_over_channels: bool
) -> BackwardPlan:
    """``one_cap_over_channels``: the layout counts channels, for the bias, and the one cap wants a gradient too."""
    if layout.caps == 0:
        return BackwardPlan(None, None, 0, 1, 0, 0, False, 1, 1, 0)
    if runs_by_rows(vec, layout):
        rows = row_plan(vec, layout, processors, tuning)
        second = one_cap_over_channels
        shared = rows.splits > 1
        return BackwardPlan(
            rows, None, layout.caps, rows.splits, rows.splits * layout.caps if shared or second else 0,
            layout.caps if shared and not second else 0, second, 1, 1, rows.programs,
        )  # fmt: skip
    columns = column_plan(vec, layout, processors, tuning)
    # A tile of columns that is a tile of caps is finished by its last program.
    second = one_cap_over_channels or layout.inner > 1 or columns.repeat > 1
    shared = columns.row_blocks > 1
    return BackwardPlan(
        None, columns, columns.row, columns.row_blocks, columns.row_blocks * columns.row if shared or second else 0,
        columns.tiles if shared and not second else 0, second, columns.repeat, layout.inner, columns.programs,
    )  # fmt: skip


PENALTY_TILE = 1024
CAPS_PER_PROGRAM = 8192
MOST_PENALTY_PROGRAMS = 64


def penalty_programs(caps: int) -> int:
    """Programs of the forward launch that sum squares of caps."""
    return min(max(1, up_to(caps, CAPS_PER_PROGRAM)), MOST_PENALTY_PROGRAMS)


SEGMENT_OF_CAPS = 4096  # of one program, in the passes over many caps
CAPS_PER_LAUNCH = 16


def launches_of(sizes: list[int]) -> list[tuple[int, int]]:
    """Ranges of caps, at most CAPS_PER_LAUNCH each, that one launch takes together."""
    return [(first, min(first + CAPS_PER_LAUNCH, len(sizes))) for first in range(0, len(sizes), CAPS_PER_LAUNCH)]


FINISH_TILE = 1024


@dataclass(frozen=True)
class ReductionPlan:
    """The second launch: `caps` caps at a time per program, `terms` of their partial sums at a time."""

    caps: int
    terms: int
    programs: int


@remembered
def reduction_plan(caps: int, terms: int) -> ReductionPlan:
    side_by_side = min(32, power_of_two(max(1, caps)))
    return ReductionPlan(
        side_by_side, min(FINISH_TILE // side_by_side, power_of_two(max(1, terms))), up_to(caps, side_by_side)
    )
