"""How passes are cut into Triton programs, by arithmetic alone: every element once, workspaces as large as needed."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest

from dreluop.backends.triton.plan import (
    INTERPRETER,
    ONE,
    BackwardPlan,
    ColumnPlan,
    Layout,
    RowPlan,
    Tuning,
    backward_plan,
    cap_mode,
    checked_programs,
    column_plan,
    flat_plan,
    launches_of,
    needs_64_bits,
    penalty_programs,
    reduction_plan,
    row_plan,
    runs_by_rows,
    vec_of,
)

TUNINGS = (Tuning(), INTERPRETER, Tuning(row_tile=128, column_tile=256, column_warps=8, waves=1, row_programs=1))
# The largest tiles that there may be.
LARGEST = Tuning(flat_tile=2**15, flat_warps=32, row_tile=2**15, row_warps=32, column_tile=2**15, column_warps=32)
PROCESSORS = (1, 2, 132)


def layouts() -> list[Layout]:
    generator = random.Random(0)
    sizes = (0, 1, 2, 3, 5, 7, 8, 9, 16, 31, 64, 100)
    small = [Layout(*sizes) for sizes in itertools.product(sizes[:8], repeat=3)]
    some = [Layout(*generator.choices(sizes, k=3)) for _ in range(150)]
    large = [Layout(1, 1, 20_001), Layout(41, 509, 1), Layout(2, 3, 5011), Layout(3013, 7, 1), Layout(3, 13, 373),
             Layout(1025, 5, 3), Layout(64, 256, 1), Layout(8, 64, 49)]  # fmt: skip
    return list({layout: None for layout in [*small, *some, *large]})


def elements_of_rows(plan: RowPlan, vec: int, layout: Layout) -> Counter[int]:
    """As backward_rows_kernel traverses x: vecs of every segment, then what is left at both its ends."""
    seen: Counter[int] = Counter()
    for program in range(plan.programs):
        split, cap = divmod(program, layout.caps)
        for segment in range(split * plan.per_split, min(plan.segments, (split + 1) * plan.per_split)):
            run, segment_size = divmod(segment, plan.segments_per_run)
            begin = (run * layout.caps + cap) * layout.inner + segment_size * plan.segment_size
            stop = begin + min(plan.segment_size, layout.inner - segment_size * plan.segment_size)
            first = -(-begin // vec)
            whole = [g for g in range(first, first + plan.width) if (g + 1) * vec <= stop]
            seen.update(e for g in whole for e in range(g * vec, (g + 1) * vec))
            if plan.edges:
                head_end = min(first * vec, stop)
                tail = max(stop // vec * vec, head_end)
                assert head_end - begin <= vec
                assert stop - tail <= vec
                seen.update(range(begin, head_end))
                seen.update(range(tail, stop))
    return seen


def elements_of_columns(plan: ColumnPlan, vec: int, layout: Layout) -> Counter[int]:
    """As backward_columns_kernel traverses x: whole rows, then the one that is cut."""
    seen: Counter[int] = Counter()
    whole_rows = layout.numel // plan.row
    for program in range(plan.programs):
        block, tile = divmod(program, plan.tiles)
        vecs = [g for g in range(tile * plan.width, (tile + 1) * plan.width) if g < plan.vecs]
        begin, end = block * plan.per_program, min(plan.rows, (block + 1) * plan.per_program)
        rows = list(range(begin, min(end, whole_rows))) + ([whole_rows] if end > whole_rows else [])
        for row, g in itertools.product(rows, vecs):
            first = row * plan.row + g * vec
            seen.update(e for e in range(first, first + vec) if e < layout.numel)
            assert first % vec == 0
    return seen


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("tuning", TUNINGS, ids=["gpu", "interpreter", "other"])
def test_every_element_belongs_to_one_program(tuning: Tuning, itemsize: int) -> None:
    vec = vec_of(itemsize)
    by_rows = by_columns = 0
    for number, given in enumerate(layouts()):
        layout, processors = given.merged(), PROCESSORS[number % len(PROCESSORS)]
        plan = backward_plan(vec, layout, processors, tuning, one_cap_over_channels=False)
        check_workspace(plan, layout)
        if layout.caps == 0 or (layout.numel > 20_000):
            continue
        if plan.rows is not None:
            by_rows += 1
            check_row_plan(plan.rows, layout, tuning)
            seen = elements_of_rows(plan.rows, vec, layout)
        else:
            assert plan.columns is not None
            by_columns += 1
            check_column_plan(plan.columns, vec, tuning)
            seen = elements_of_columns(plan.columns, vec, layout)
        assert len(seen) == layout.numel, layout
        assert set(seen.values()) <= {1}, layout
    assert min(by_rows, by_columns) > 50, (by_rows, by_columns)


def check_row_plan(plan: RowPlan, layout: Layout, tuning: Tuning) -> None:
    for size in (plan.width, plan.runs):
        assert size & (size - 1) == 0
    assert plan.width * plan.runs <= tuning.row_tile
    assert plan.per_split % plan.runs == 0
    assert plan.programs == layout.caps * plan.splits
    if layout.numel:
        # No program without a segment.
        assert (plan.splits - 1) * plan.per_split < plan.segments


def check_column_plan(plan: ColumnPlan, vec: int, tuning: Tuning) -> None:
    for size in (plan.width, plan.height):
        assert size & (size - 1) == 0
    assert plan.width * plan.height <= tuning.column_tile
    assert plan.row == plan.vecs * vec
    assert plan.per_program % plan.height == 0
    assert (plan.row_blocks - 1) * plan.per_program < plan.rows
    assert (plan.tiles - 1) * plan.width < plan.vecs


def check_workspace(plan: BackwardPlan, layout: Layout) -> None:
    """A partial sum for each program and column, where more than one program has the column, or none may write."""
    if plan.blocks > 1 or plan.second_launch:
        assert plan.partials == plan.blocks * plan.sum_columns
    else:
        assert plan.partials == 0
    assert (plan.counters > 0) == (plan.blocks > 1 and not plan.second_launch and layout.caps > 0)
    if plan.second_launch:
        # Each column of each block once, over all caps.
        found = Counter(
            q * layout.period + c * layout.inner + r
            for c in range(layout.caps) for q in range(plan.repeat) for r in range(plan.inner)
        ) if layout.caps * plan.repeat * plan.inner <= 5000 else None  # fmt: skip
        if found is not None:
            assert found == Counter(range(plan.sum_columns)), layout


@pytest.mark.parametrize("one_cap_over_channels", [False, True])
def test_a_second_launch_only_where_caps_are_spread_over_tiles(one_cap_over_channels: bool) -> None:
    for layout in map(Layout.merged, layouts()):
        if layout.caps == 0:
            continue
        plan = backward_plan(4, layout, 132, Tuning(), one_cap_over_channels=one_cap_over_channels)
        one_column_each = plan.columns is None or (layout.inner == 1 and plan.columns.repeat == 1)
        assert plan.second_launch == (one_cap_over_channels or not one_column_each)


def test_usual_shapes_are_one_launch() -> None:
    for vec in (4, 8):
        for layout in (
            Layout(32, 64, 784), Layout(32, 64, 49), Layout(4096, 1024, 1), Layout(25_088, 64, 1), Layout(1, 1, 2**24),
            Layout(256, 25_088, 1), Layout(64, 2048, 49),
        ):  # fmt: skip
            assert not backward_plan(vec, layout, 132, Tuning(), one_cap_over_channels=False).second_launch, layout


def test_large_tensors_fill_the_device() -> None:
    tuning = Tuning()
    for layout in (Layout(1, 1, 2**25), Layout(2**15, 1024, 1), Layout(128, 64, 4096), Layout(2**19, 64, 1)):
        plan = backward_plan(4, layout, 132, tuning, one_cap_over_channels=False)
        assert plan.programs >= 2 * 132, layout
        # Partial sums are few beside three passes over the tensor.
        assert plan.partials * 8 < 0.02 * 3 * layout.numel * 4, layout


def test_numbers_of_elements_that_are_not_wide_fit_32_bits() -> None:
    """Also of those behind the last element, which are formed before they are masked."""
    generator = random.Random(0)
    layouts = [Layout(2147, 1_000_001, 1), Layout(2147, 1_000_001, 3), Layout(1, 1, 2**31 - 5), Layout(2**28 - 3, 8, 1)]
    for _ in range(3000):
        caps, inner = generator.choice((1, 7, 64, 16_385, 1_000_001)), generator.choice((1, 2, 3, 49, 1 << 20))
        short = generator.randrange(1, 1 << generator.randrange(4, 30))
        layouts.append(Layout(max(1, (2**31 - short) // (caps * inner)), caps, inner))
    downcast = 0
    for layout, vec, tuning in itertools.product(layouts, (2, 4, 8), (Tuning(), INTERPRETER, LARGEST)):
        if layout.numel >= 2**31 or needs_64_bits(vec, layout, 0):
            continue
        downcast += 1
        tile = tuning.flat_tile
        assert flat_plan(vec, layout.numel, tile).programs * tile * vec < 2**31
        if not runs_by_rows(vec, layout):
            columns = column_plan(vec, layout, 132, tuning)
            assert columns.rows * columns.row < 2**31, (layout, vec)
    assert downcast > 1000
    assert needs_64_bits(8, Layout(2147, 1_000_001, 1), 0)


@pytest.mark.parametrize("vec", [4, 8])
def test_flat_plan(vec: int) -> None:
    for numel in [*range(200), *(2**k + d for k in range(8, 20) for d in (-1, 0, 1))]:
        plan = flat_plan(vec, numel, 256)
        size = plan.tile * vec
        assert plan.tile & (plan.tile - 1) == 0
        assert plan.programs * size >= numel > (plan.programs - 1) * size
        assert plan.full in (plan.programs, plan.programs - 1)
        assert plan.full * size <= numel


def test_index_beyond_32_bits() -> None:
    layout = Layout(2**20, 4096, 1)
    plan = column_plan(8, layout, 132, Tuning())
    assert plan.rows * plan.row == 2**32
    assert plan.programs < 2**31
    assert row_plan(4, Layout(1, 1, 2**40), 132, Tuning()).programs < 2**31
    with pytest.raises(ValueError, match="x: too many elements for one launch"):
        checked_programs(2**31)


@pytest.mark.parametrize("vec", [4, 8])
def test_cap_mode(vec: int) -> None:
    for layout in layouts():
        mode = cap_mode(vec, layout, side_by_side=True)
        assert (mode == ONE) == (layout.caps == 1)
        if layout.caps > 1 and runs_by_rows(vec, layout) and layout.numel:
            assert layout.inner >= vec
    assert cap_mode(4, Layout(1, 8, 1), side_by_side=True) != cap_mode(4, Layout(1, 8, 1), side_by_side=False)


def test_launches_of_many_caps() -> None:
    for count in (1, 15, 16, 17, 200):
        ranges = launches_of([3] * count)
        assert [k for first, last in ranges for k in range(first, last)] == list(range(count))
        assert max(last - first for first, last in ranges) <= 16
    assert [penalty_programs(n) for n in (0, 1, 8192, 8193, 10**9)] == [1, 1, 1, 2, 64]


def test_finish_plan() -> None:
    for caps, terms in itertools.product((1, 3, 64, 1000), (1, 7, 4096)):
        plan = reduction_plan(caps, terms)
        assert (plan.programs - 1) * plan.caps < caps <= plan.programs * plan.caps
        assert plan.caps * plan.terms <= 1024


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flat_tile": 100}, "flat_tile: got 100; expected a power of two"),
        ({"row_warps": 0}, "row_warps: got 0; expected a whole number"),
        ({"waves": 1.5}, "waves: got 1.5"),
        ({"column_tile": 64}, "column_tile: got 64 vecs for 128 threads"),
        ({"row_warps": 64, "row_tile": 2048}, "row_tile: got 2048 vecs for 2048 threads"),
    ],
)
def test_bad_launch_parameters(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Tuning(), **change)
