"""Whole training steps and inference of the paper's networks: `python -m benchmarks models --help`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from benchmarks.harness import implementations as c
from benchmarks.harness.attempts import attempt, failure
from benchmarks.harness.cli import Bench, Run
from benchmarks.harness.interleave import Budget, Timed, interleave
from benchmarks.harness.machine import Platform
from benchmarks.harness.records import Record
from benchmarks.harness.table import (
    Column,
    Row,
    Table,
    Target,
    against,
    hardware,
    is_known,
    left_out,
    noise,
    pivot,
    software,
    target_table,
)
from benchmarks.models import networks
from benchmarks.models.implementations import FULL, FUSED, FUSED_MASK, HEAD, IMPLEMENTATIONS, IN_PLACE, OURS, RELU, caps
from benchmarks.models.largest import Search, find_all
from benchmarks.models.networks import NETWORKS
from benchmarks.models.steps import (
    AMP,
    COMPILED,
    EAGER,
    FP32,
    INFERENCE,
    PASSES,
    TRAIN,
    Subject,
    memory_format,
    noting,
    searching_algorithms,
)

if TYPE_CHECKING:
    import pandas as pd

# The warm-up that finds algorithms, compiles and may fail comes before: WARM_UP steps of each implementation.
BUDGETS = {
    "cuda": Budget(seconds=0.5, min_samples=7, max_samples=11, warmup=1, sample_seconds=0),
    "cpu": Budget(seconds=2.0, min_samples=5, max_samples=9, warmup=1, sample_seconds=0),
}
QUICK = Budget(seconds=0, min_samples=3, max_samples=3, warmup=1, sample_seconds=0)
WARM_UP = 2

MAIN = (RELU, c.RELU_MINIMUM.name, OURS, IN_PLACE, FUSED)
# Where no activation follows a residual sum, there is nothing to fuse.
NO_SUMS = tuple(name for name in IMPLEMENTATIONS if name not in (FUSED, FUSED_MASK))
FEW = (RELU, c.RELU_MINIMUM.name, IN_PLACE)
ONE_LAYER = (RELU, c.RELU_MINIMUM.name, OURS)
# In order of importance, as each takes half a minute to compile.
COMPILED_RESIDUAL = (c.RELU_MINIMUM.name, FUSED, RELU)
COMPILED_PLAIN = (c.RELU_MINIMUM.name, IN_PLACE, RELU)
LARGE_BATCH = 256  # where the device is busy for longer than the host needs to launch its work


@dataclass(frozen=True)
class Case:
    """A network, how it runs, and the implementations that are compared.

    Attributes:
        seconds: what it takes on the device it is meant for, about.
    """

    network: str
    variant: str
    precision: str
    mode: str
    pass_: str
    implementations: tuple[str, ...]
    seconds: float
    batch: int
    image: int

    @property
    def label(self) -> str:
        return ", ".join((self.network, self.variant, self.precision, self.mode, self.pass_, f"batch {self.batch}"))


def _case(network: str, *how: Any, batch: int | None = None) -> Case:
    of = NETWORKS[network]
    return Case(network, *how, batch=batch or of.batch, image=of.image)


def _small(network: str, *how: Any) -> Case:
    of = NETWORKS[network]
    return Case(network, *how, batch=of.small_batch, image=of.small_image)


# The more telling first, with the seconds that each takes on an H100, about, or is thought to take.
ON_A_GPU = (
    _case("resnet50", FULL, AMP, EAGER, TRAIN, IMPLEMENTATIONS, 16),
    _case("resnet50", FULL, FP32, EAGER, TRAIN, MAIN, 23),
    _case("resnet50", FULL, AMP, EAGER, TRAIN, MAIN, 13, batch=LARGE_BATCH),
    _case("resnet50", FULL, AMP, COMPILED, TRAIN, COMPILED_RESIDUAL, 80),
    _case("mobilenet_v2", FULL, AMP, EAGER, TRAIN, NO_SUMS, 21),
    _case("resnet50", FULL, AMP, EAGER, INFERENCE, MAIN, 4),
    _case("inception_v3", FULL, AMP, EAGER, TRAIN, FEW, 45),
    _case("resnet101", FULL, AMP, EAGER, TRAIN, MAIN, 10),
    _case("resnet50", HEAD, AMP, EAGER, TRAIN, ONE_LAYER, 4),
    Search("resnet50", AMP, (RELU, c.RELU_MINIMUM.name, FUSED), 25),
    # In bfloat16 its largest tensors would have more than 2^31 elements, where other limits than memory begin.
    Search("mobilenet_v2", FP32, (RELU, c.RELU_MINIMUM.name, IN_PLACE), 25),
    _case("mobilenet_v2", FULL, AMP, COMPILED, TRAIN, COMPILED_PLAIN, 80),
    _case("mobilenet_v2", FULL, FP32, EAGER, TRAIN, FEW, 27),
    _case("resnet50", FULL, FP32, EAGER, INFERENCE, MAIN, 4),
    _case("mobilenet_v2", FULL, AMP, EAGER, INFERENCE, FEW, 3),
    _case("inception_v3", FULL, AMP, EAGER, INFERENCE, FEW, 4),
    _case("resnet101", FULL, AMP, EAGER, INFERENCE, FEW, 4),
    _case("mobilenet_v2", HEAD, AMP, EAGER, TRAIN, ONE_LAYER, 3),
    _case("inception_v3", HEAD, AMP, EAGER, TRAIN, ONE_LAYER, 5),
    _case("resnet101", HEAD, AMP, EAGER, TRAIN, ONE_LAYER, 4),
    _case("resnet101", FULL, FP32, EAGER, TRAIN, FEW, 12),
    _case("inception_v3", FULL, FP32, EAGER, TRAIN, FEW, 14),
    _case("resnet50", FULL, AMP, COMPILED, INFERENCE, COMPILED_RESIDUAL, 40),
)
ON_A_CPU = (
    _small("resnet50", FULL, FP32, EAGER, TRAIN, IMPLEMENTATIONS, 40),
    _small("mobilenet_v2", FULL, FP32, EAGER, TRAIN, NO_SUMS, 20),
    _small("resnet50", FULL, FP32, EAGER, INFERENCE, MAIN, 10),
    _small("inception_v3", FULL, FP32, EAGER, TRAIN, FEW, 30),
    _small("resnet101", FULL, FP32, EAGER, TRAIN, FEW, 30),
    _small("resnet50", HEAD, FP32, EAGER, TRAIN, ONE_LAYER, 15),
    _small("mobilenet_v2", FULL, FP32, EAGER, INFERENCE, FEW, 5),
    _small("mobilenet_v2", FULL, AMP, EAGER, TRAIN, FEW, 30),
)


def cases(kind: str, settings: Mapping[str, Any]) -> Sequence[Case | Search]:
    """What is measured on a device; with ``quick``, one case of a reduced size."""
    if settings.get("quick"):
        return [_small("mobilenet_v2", FULL, FP32, EAGER, TRAIN, FEW, 10)]
    return ON_A_GPU if kind == "cuda" else ON_A_CPU


def run(case: Case | Search, with_: Run) -> list[dict[str, Any]]:
    """Measure a case or search for a batch; gives back what was taken: memory, and compiled code."""
    platform = with_.platform
    with searching_algorithms(not isinstance(case, Search)):
        try:
            if isinstance(case, Search):
                rows = find_all(case, platform, with_.until)
            else:
                rows = run_case(case, QUICK if with_.quick else BUDGETS[platform.kind], platform, with_.until)
        except Exception as error:
            rows = [failure(error)]
    if case.mode == COMPILED:
        torch._dynamo.reset()
    platform.release()
    return rows


def run_case(case: Case, budget: Budget, platform: Platform, until: float | None = None) -> list[dict[str, Any]]:
    """Time every implementation of a case, interleaved; one that fails is left out, with its reason."""
    data = networks.data(case.batch, case.image, platform.device, memory_format(case.precision))
    begun, failures = attempt(
        case.implementations, lambda name: _begun(case, name, data, platform), platform.release, until
    )
    host: dict[str, list[float]] = {name: [] for name in begun}
    timed = [Timed(name, (noting(one.subject.step, host[name]),)) for name, one in begun.items()]
    seconds = {name: found.seconds() for name, found in interleave(timed, budget, sampler=platform.sample).items()}
    rows = [
        {
            "implementation": name,
            "network": case.network,
            "variant": case.variant,
            "precision": case.precision,
            "mode": case.mode,
            "pass": case.pass_,
            "batch": case.batch,
            "image": case.image,
            "caps": sum(cap.numel() for cap in caps(begun[name].subject.model)),
            **of.in_ms(),
            "host_ms": statistics.median(host[name][-of.samples :]) * 1e3 if platform.kind == "cuda" else None,
            "images_per_s": case.batch / of.median,
            "ratio_to_relu": of.median / seconds[RELU].median if RELU in seconds else None,
            "peak_bytes": begun[name].peak_bytes,
            "saved_bytes": begun[name].saved_bytes,
        }
        for name, of in seconds.items()
    ]
    return rows + failures


class _Begun(NamedTuple):
    subject: Subject
    peak_bytes: int | None
    saved_bytes: int | None


def _begun(case: Case, name: str, data: tuple[torch.Tensor, torch.Tensor], platform: Platform) -> _Begun:
    subject = Subject(
        case.network, case.variant, name, data, precision=case.precision, mode=case.mode, pass_=case.pass_
    )
    for _ in range(WARM_UP):
        subject.step()
    keeps = case.pass_ == TRAIN and case.mode == EAGER
    return _Begun(subject, subject.peak_bytes(platform), subject.saved_bytes() if keeps else None)


OVER = f"over {c.RELU_MINIMUM.name}"
# What ``replace_activations`` makes, fused or not, may not be slower in a compiled network.
TARGETS = tuple(
    Target(
        (pass_, c.RELU_MINIMUM.name, "<= 1.00 within noise"),
        {"implementation": (FUSED, IN_PLACE), "mode": COMPILED, "pass": pass_},
        OVER,
        1.0,
        at_most=True,
        noise="noise",
        form="{measured:.3f} (noise {noise:.1%}; {network}, {implementation})",
    )
    for pass_ in PASSES
)


def targets(record: Record) -> Table:
    """Each target beside what was measured; noise: the larger of both distances of quartiles over the median."""
    frame = _steps(record)
    spread = (frame["q3_ms"] - frame["q1_ms"]) / frame["ms"]
    other = frame.assign(spread=spread)[frame["implementation"] == c.RELU_MINIMUM.name].set_index("case")["spread"]
    noise = spread.combine(frame["case"].map(other), max)
    frame = frame.assign(**{OVER: 1 / against(frame, c.RELU_MINIMUM.name, ["case"]), "noise": noise})
    return target_table(("compiled", "ours over", "target"), TARGETS, frame)


def _steps(record: Record) -> pd.DataFrame:
    frame = record.frame()
    return frame[frame["ms"].notna()] if "ms" in frame else frame.iloc[:0].reindex(columns=["ms", "implementation"])


def _time(row: Row) -> str:
    ratio = row["ratio_to_relu"]
    return f"{row['ms']:.3g}" + (f" ({ratio:.2f})" if is_known(ratio) and row["implementation"] != RELU else "")


def _memory(row: Row) -> str | None:
    """Peak memory where it was counted; of training steps without it, what is kept for backward."""
    peak, saved = row["peak_bytes"], row["saved_bytes"]
    if is_known(peak):
        return f"{peak / 1e6:.0f}"
    return f"saved {saved / 1e6:.1f}" if is_known(saved) else None


def _by_case(title: str, frame: pd.DataFrame, value: str | Callable[[Row], Any], form: str = "{}") -> Table:
    known = [name for name in IMPLEMENTATIONS if name in set(frame["implementation"])]
    columns = [
        Column("case", lambda row: row["case"].rpartition(", ")[0]),
        Column("batch", lambda row: f"{row['batch']:.0f} x {row['image']:.0f} px"),
        *(Column(name, value, form, {"implementation": name}) for name in known),
    ]
    return pivot(title, frame, ["case"], columns, known=known)


LARGEST = (
    Column("case", lambda row: f"{row['network']}, {row['precision']}, {TRAIN}, {row['image']:.0f} px"),
    Column("implementation", "implementation"),
    Column("largest batch that ran", "largest", "{:.0f}"),
    Column("out of memory at", "too_large", "{:.0f}"),
    Column("MB per image", lambda row: row["bytes_per_image"] / 1e6, "{:.1f}"),
)


def tables(record: Record) -> list[Table]:
    """Those that have rows: targets, a line per case with times, the host's time, and memory, and the searches."""
    frame, every = _steps(record), record.frame()
    found = []
    if not frame.empty:
        found = [
            targets(record),
            _by_case("Times, ms", frame, _time),
            _by_case("Time of the host to launch it, ms", frame, "host_ms", "{:.3g}"),
            _by_case("Memory, MB", frame, _memory),
        ]
    if "largest" in every:
        searches = every[every["largest"].notna()]
        found.append(pivot("Largest batch", searches, ["case", "implementation"], LARGEST))
    return [table for table in found if table.rows]


def headline(record: Record) -> str:
    torchvision = f"torchvision {record.run['versions']['torchvision']}"
    more = record.when(), noise(_steps(record), "an implementation")
    found = [hardware(record), software(record), torchvision, *more]
    return "; ".join([*found, *left_out(record, BENCH.missing(record), "quick run: one case of reduced size")])


def _torchvision() -> dict[str, str]:
    try:
        return {"torchvision": metadata.version("torchvision")}
    except metadata.PackageNotFoundError:
        return {"torchvision": "not installed"}


LEGEND = (
    "Medians of whole steps; the implementations take turns in one process, from the same weights, on the same random "
    "images. In brackets: over plain ReLU, smaller is better. All but ReLU also pay for the penalty on their caps. "
    "Where the host takes as long to launch a step as the step lasts, the device waits for Python, not for kernels. "
    "Peak: network, optimizer, data and all else that a step allocates at its worst moment. Saved: what a forward pass "
    "keeps for backward beyond network and data."
)
BENCH = Bench(
    "models", "Time whole training steps and inference of the paper's networks.", cases, run, ("implementation",),
    headline, tables, settings=lambda _: {"tf32": torch.backends.cudnn.allow_tf32}, extra_versions=_torchvision,
)  # fmt: skip
BENCHES = {BENCH.name: BENCH}
