"""The cases, and how each is timed.

========================  ========================================  ===================  =========================
pass                      timed                                     bytes per element    floor
========================  ========================================  ===================  =========================
forward                   ``y = f(x, cap)``, with a graph recorded  2s: read x, write y  ``x.clone()``
in-place                  ``f_(x, cap)``, without gradients         2s: read x, write x  ``y.copy_(x)``
backward                  ``autograd.grad(y, (x, cap), g)``         3s: read g and y,    ``g.clone()``
                                                                    write dx
forward+backward          the two, one after the other              5s                   both clones
========================  ========================================  ===================  =========================

s is the size of an element; caps are negligible. The bytes are the fewest that any implementation keeping y can move;
GB/s is those bytes over the time, so an implementation that moves more shows fewer GB/s. Forward and backward are laps
of the same calls, and every call builds its own graph. ``mode`` is cold where x and y are larger than the last-level
cache, else hot: x is the same in all calls. ``saved_bytes``, ``saves_x`` and ``saves_y`` are those of ``memory.Saved``,
of one call; in place nothing is saved. In all passes but in-place the result is a fresh tensor, whose
page faults are part of the time, the floor's too (``measure`` says more). Before each in-place call x is restored,
untimed, so that the data stay random: values off, inside and capped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch
from torch import Tensor

from benchmarks.harness import implementations as c
from benchmarks.harness.interleave import Budget, Samples, Timed, fresh_memory, interleave, threads
from benchmarks.harness.memory import Saved
from benchmarks.harness.workloads import Repeated
from benchmarks.processor import last_level_cache

FORWARD, IN_PLACE, BACKWARD, BOTH = "forward", "in-place", "backward", "forward+backward"
# Which steps of a training call belong to a pass.
PASSES = {FORWARD: slice(0, 1), BACKWARD: slice(1, 2), BOTH: slice(0, 2)}
HOT_MODE, COLD_MODE = "hot", "cold"
LARGE = 64 * 2**20  # bytes of x
TENSORS_OF_A_CALL = 3  # of x's size, about: y, dx, and one that eager forms need between
BYTES_PER_ELEMENT = {FORWARD: 2, IN_PLACE: 2, BACKWARD: 3, BOTH: 5}  # in units of s
FLOORS = {FORWARD: c.CLONE, IN_PLACE: c.COPY, BACKWARD: c.CLONE, BOTH: c.CLONE}

FP32_BATCH = 32
IMAGE = (64, 92, 92)
DENSE = (4096, 4096)
SMALL = (64, 512)

FULL = Budget()
QUICK = Budget(seconds=0.3, min_samples=3, max_samples=8)
DEMO = Budget(seconds=0.3, min_samples=3, max_samples=8, warmup=1)

Row = TypedDict(
    "Row",
    {
        "case": str,
        "granularity": str,
        "memory_format": str,
        "shape": list[int],
        "dtype": str,
        "x_bytes": int,
        "pass": str,
        "implementation": str,
        "ms": float,
        "q1_ms": float,
        "q3_ms": float,
        "min_ms": float,
        "samples": int,
        "calls_per_sample": int,
        "mode": str,
        "threads": int,
        "page_faults": float,
        "saved_bytes": int | None,
        "saves_x": bool | None,
        "saves_y": bool | None,
        "floor": str,
        "floor_ms": float,
        "ratio_to_floor": float,
        "min_bytes": int,
        "gb_per_s": float,
    },
)


class Failure(TypedDict):
    """An implementation, or a whole case (None), that was not measured."""

    case: str
    dtype: str
    implementation: str | None
    reason: str


Step = Callable[[Any], Any]


@dataclass(frozen=True)
class Case:
    """One input and who runs on it.

    Attributes:
        name: what tables call the input, without its dtype.
        granularity: "layer", "channel" or "neuron".
        shape: of x; the channels are dimension 1.
        dtype: of x, the cap and the gradient of y.
        implementations: names from ``implementations.IMPLEMENTATIONS``.
        channels_last: the memory format of x and of the gradient of y.
        in_place: whether the in-place forms are timed as well.
        threads: of the CPU; None for those that torch uses.
    """

    name: str
    granularity: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    implementations: tuple[str, ...]
    channels_last: bool = False
    in_place: bool = True
    threads: int | None = None

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def x_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def cap_shape(self) -> tuple[int, ...]:
        shapes = {"layer": (1,), "channel": self.shape[1:2], "neuron": self.shape[1:]}
        if self.granularity not in shapes:
            raise ValueError(f'granularity: got {self.granularity!r}; expected "layer", "channel" or "neuron"')
        return shapes[self.granularity]


EAGER = (c.RELU_MINIMUM.name, c.CLAMP.name, c.OURS.name)
EVERYONE = (*EAGER, c.COMPILED.name)
# Beside those, on the first input.
OTHER_FORMS = (c.WHERE.name, c.PACT.name, c.BREVITAS.name, c.REFERENCE.name)
OTHER_FORMS_COMPILED = (c.COMPILED_CLAMP.name, c.COMPILED_WHERE.name, c.COMPILED_PACT.name)
FIXED = (c.HARDTANH.name, c.RELU6.name)  # one cap only
FIRST, LAYER = "channel caps, NCHW", "layer cap, NCHW"


def cases(*, quick: bool = False, compiled: bool = True) -> list[Case]:
    """The cases of a run: tensors of 64 MiB and more, and one of 64 x 512; some of them on one thread too.

    Args:
        quick: only channel caps on NCHW and the small case, in fp32 and bf16, without the rarer forms.
        compiled: whether torch.compile takes part.
    """
    found = []
    for name, granularity, rest, channels_last in (
        (FIRST, "channel", IMAGE, False),
        ("channel caps, channels-last", "channel", IMAGE, True),
        (LAYER, "layer", IMAGE, False),
        ("neuron caps, dense", "neuron", DENSE[1:], False),
    ):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            compared = dtype in (torch.float32, torch.bfloat16)
            if quick and not (name == FIRST and compared):
                continue
            who = EVERYONE if quick else _implementations(name, dtype, compared)
            batch = (FP32_BATCH if rest is IMAGE else DENSE[0]) * 4 // dtype.itemsize
            found.append(Case(name, granularity, (batch, *rest), dtype, who, channels_last))
    found += [
        Case("neuron caps, dense, small", "neuron", SMALL, dtype, EVERYONE, in_place=False)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    if not quick:
        alone = [case for case in found if case.dtype == torch.float32 and (case.name == FIRST or case.shape == SMALL)]
        found += [replace(case, name=f"{case.name}, 1 thread", threads=1, implementations=EAGER) for case in alone]
    return found if compiled else [_without_compiled(case) for case in found]


def _implementations(name: str, dtype: torch.dtype, compared: bool) -> tuple[str, ...]:
    # Eager takes a second a call in half types: elsewhere only what the targets ask for is compared.
    who = EVERYONE if compared else EAGER if name == FIRST else (c.OURS.name,)
    if name == FIRST and dtype == torch.float32:
        who += c.installed((*OTHER_FORMS, *OTHER_FORMS_COMPILED))
    return who + FIXED if name == LAYER and compared else who


def _without_compiled(case: Case) -> Case:
    eager = tuple(name for name in case.implementations if not c.IMPLEMENTATIONS[name].compiled)
    return replace(case, implementations=eager)


@dataclass(frozen=True)
class Data:
    x: Tensor
    cap: Tensor
    grad: Tensor


def make_data(case: Case, seed: int = 0, device: torch.device | str = "cpu") -> Data:
    """Standard normal x and gradient, caps uniform in [0.5, 1.5): about half the elements are off, a sixth capped."""
    generator = torch.Generator(device).manual_seed(seed)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    x, grad = (
        torch.randn(case.shape, generator=generator, dtype=case.dtype, device=device).contiguous(memory_format=layout)
        for _ in range(2)
    )
    cap = torch.rand(case.cap_shape, generator=generator, dtype=case.dtype, device=device) + 0.5
    return Data(x, cap, grad)


def run_case(case: Case, budget: Budget) -> tuple[list[Row], list[Failure]]:
    """Time every implementation of a case in all its passes; one that fails is left out, with its reason."""
    c.forget_compiled(case.implementations)
    data = make_data(case)
    with contextlib.nullcontext() if case.threads is None else threads(case.threads):
        rows, failures = _training_rows(case, data, budget)
        if case.in_place:
            failed = {failure["implementation"] for failure in failures}
            left = tuple(name for name in case.implementations if name not in failed)
            rows += _in_place_rows(replace(case, implementations=left), data, budget)
    return rows, failures


def preparation(x_bytes: int) -> Callable[[], None] | None:
    """What comes before each call on an x of this size, untimed."""
    # A small tensor never leaves the heap: trimming would only add faults that no user sees.
    return fresh_memory(TENSORS_OF_A_CALL * x_bytes) if x_bytes >= LARGE else None


def _training_rows(case: Case, data: Data, budget: Budget) -> tuple[list[Row], list[Failure]]:
    prepare = preparation(case.x_bytes)
    timed = [Timed(c.CLONE, (lambda _: data.x.clone(), lambda _: data.grad.clone()), prepare)]
    kept: dict[str, Saved] = {}
    failures = []
    for name in case.implementations:
        try:
            work = Repeated(c.IMPLEMENTATIONS[name], [data], 1)
            work.check()
            kept[name] = work.kept()
            timed.append(Timed(name, (work.first_forward, work.one_backward), prepare))
        except Exception as error:
            failures.append(failure_of(case, name, error))
    samples = interleave(timed, budget)
    rows = [
        row
        for name, which in PASSES.items()
        for row in _rows(case, name, {who: of.steps(which) for who, of in samples.items()}, kept)
    ]
    return rows, failures


def failure_of(case: Case, implementation: str | None, error: Exception) -> Failure:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"case": case.name, "dtype": case.dtype_name, "implementation": implementation, "reason": reason}


@torch.no_grad()
def _in_place_rows(case: Case, data: Data, budget: Budget) -> list[Row]:
    x, y = torch.empty_like(data.x), torch.empty_like(data.x)

    def restore() -> Tensor:
        return x.copy_(data.x)

    timed = [Timed(c.COPY, (lambda _: y.copy_(x),), restore)]
    for name in case.implementations:
        inplace = c.IMPLEMENTATIONS[name].inplace
        if inplace is not None:
            timed.append(Timed(name, (_in_place_step(inplace, x, data.cap),), restore))
    return _rows(case, IN_PLACE, interleave(timed, budget), {})


def _in_place_step(activation: c.Activation, x: Tensor, cap: Tensor) -> Step:
    return lambda _: activation(x, cap, 1)


def _rows(case: Case, pass_: str, samples: dict[str, Samples], kept: dict[str, Saved]) -> list[Row]:
    min_bytes = BYTES_PER_ELEMENT[pass_] * case.x_bytes
    floor = FLOORS[pass_]
    floor_ms = samples[floor].seconds().median * 1e3
    rows: list[Row] = []
    for name, found in samples.items():
        seconds = found.seconds()
        saved = kept.get(name)
        rows.append(
            {
                "case": case.name,
                "granularity": case.granularity,
                "memory_format": "channels-last" if case.channels_last else "contiguous",
                "shape": list(case.shape),
                "dtype": case.dtype_name,
                "x_bytes": case.x_bytes,
                "pass": pass_,
                "implementation": name,
                **seconds.in_ms(),
                "calls_per_sample": found.number,
                "mode": COLD_MODE if 2 * case.x_bytes > last_level_cache() else HOT_MODE,
                "threads": torch.get_num_threads(),
                "page_faults": found.page_faults(),
                "saved_bytes": None if saved is None else saved.saved_bytes,
                "saves_x": None if saved is None else saved.saves_x,
                "saves_y": None if saved is None else saved.saves_y,
                "floor": floor,
                "floor_ms": floor_ms,
                "ratio_to_floor": seconds.median * 1e3 / floor_ms,
                "min_bytes": min_bytes,
                "gb_per_s": min_bytes / seconds.median * 1e-9,
            }
        )
    return rows


def run(selected: Sequence[Case], budget: Budget, number_of_threads: int) -> Iterator[tuple[Case, list[Row]]]:
    """Time the cases one after another, on this many threads; yields each case with its rows as soon as it is done.

    Raises:
        RuntimeError: an implementation could not be measured.
    """
    for case in selected:
        rows, failures = run_case(replace(case, threads=number_of_threads), budget)
        if failures:
            raise RuntimeError(f"{failures[0]['implementation']}: {failures[0]['reason']}")
        yield case, rows


def demo_rows(threads: int = 2) -> list[dict[str, Any]]:
    """A quick look for the demo, about 20 s on 2 cores: channel caps on NCHW tensors of 64 MiB, fp32 and bf16.

    Args:
        threads: number of CPU threads.

    Returns:
        One dict per implementation, dtype and pass, in this order of importance: ``implementation`` ("relu(minimum)",
        "clamp" or "dreluop"), ``dtype`` ("float32", "bfloat16"), ``pass`` ("forward", "backward",
        "forward+backward"), ``ms`` (median), ``floor_ms`` (a clone of x; two clones for both passes) and
        ``ratio_to_floor``.
    """
    keys = ("implementation", "dtype", "pass", "ms", "floor_ms", "ratio_to_floor")
    selected = [replace(case, in_place=False) for case in cases(quick=True, compiled=False) if case.in_place]
    return [
        {key: row[key] for key in keys}  # type: ignore[literal-required]
        for _, rows in run(selected, DEMO, threads)
        for row in rows
        if row["implementation"] != row["floor"]
    ]
