"""The cases, in order of importance, and how one is measured: its implementations take turns in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypedDict

import torch

from benchmarks import resuming
from benchmarks.harness import implementations as c
from benchmarks.harness.interleave import Budget, Timed, interleave
from benchmarks.models import largest, networks
from benchmarks.models.attempts import Failure, attempt
from benchmarks.models.implementations import FULL, FUSED, FUSED_MASK, HEAD, IMPLEMENTATIONS, IN_PLACE, OURS, RELU, caps
from benchmarks.models.largest import Search
from benchmarks.models.networks import NETWORKS
from benchmarks.models.steps import (
    AMP,
    COMPILED,
    EAGER,
    FP32,
    INFERENCE,
    TRAIN,
    Platform,
    Subject,
    memory_format,
)

# The warm-up that finds algorithms, compiles and may fail comes before: WARM_UP steps of each implementation.
GPU_BUDGET = Budget(seconds=0.5, min_samples=7, max_samples=11, warmup=1, sample_seconds=0)
CPU_BUDGET = Budget(seconds=2.0, min_samples=5, max_samples=9, warmup=1, sample_seconds=0)
QUICK = Budget(seconds=0, min_samples=3, max_samples=3, warmup=1, sample_seconds=0)
WARM_UP = 2

MAIN = (RELU, c.RELU_MINIMUM.name, OURS, IN_PLACE, FUSED)
# Where no activation follows a residual sum, there is nothing to fuse.
NO_SUMS = tuple(name for name in IMPLEMENTATIONS if name not in (FUSED, FUSED_MASK))
FEW = (RELU, c.RELU_MINIMUM.name, IN_PLACE)
ONE_LAYER = (RELU, c.RELU_MINIMUM.name, OURS)

Row = TypedDict(
    "Row",
    {
        "network": str,
        "variant": str,
        "precision": str,
        "mode": str,
        "pass": str,
        "implementation": str,
        "batch": int,
        "image": int,
        "caps": int,
        "ms": float,
        "q1_ms": float,
        "q3_ms": float,
        "min_ms": float,
        "host_ms": float | None,
        "samples": int,
        "images_per_s": float,
        "ratio_to_relu": float | None,
        "peak_bytes": int | None,
        "saved_bytes": int | None,
    },
)
KEYS = ("network", "variant", "precision", "mode", "pass", "batch")


@dataclass(frozen=True)
class Case:
    """A network, how it runs, and who takes part.

    Attributes:
        seconds: what it takes on the device it is meant for, about; with a limit, a case is begun only if it fits.
    """

    network: str
    variant: str
    precision: str
    mode: str
    pass_: str
    implementations: tuple[str, ...]
    batch: int
    image: int
    seconds: float

    @property
    def label(self) -> str:
        return label(self.network, self.variant, self.precision, self.mode, self.pass_, self.batch)


def label(network: str, variant: str, precision: str, mode: str, pass_: str, batch: int) -> str:
    return ", ".join((network, variant, precision, mode, pass_, f"batch {batch}"))


def label_of(row: Row) -> str:
    """The label of the case that a row is of."""
    return label(row["network"], row["variant"], row["precision"], row["mode"], row["pass"], row["batch"])


Work = Case | Search
ROWS: resuming.Rows = {"rows": label_of, "largest": largest.label_of}


def _failed(document: Mapping[str, Any]) -> list[str]:
    """A search that ended for want of time is no failure, but has to be made again."""
    cut_short = [largest.label_of(found) for found in document["largest"] if not largest.ended(found)]
    return [*resuming.failed_cases(document), *cut_short]


SUITE: resuming.Suite[Work] = resuming.Suite(
    name=lambda one: one.label, implementations=lambda one: one.implementations, rows=ROWS, failed=_failed
)


def cases(device: torch.device, *, quick: bool = False) -> list[Work]:
    """What is measured on a device; with ``quick``, one case of a reduced size."""
    if quick:
        return [_case("mobilenet_v2", FULL, FP32, EAGER, TRAIN, FEW, 10, small=True)]
    if device.type == "cuda":
        return [one if isinstance(one, Search) else _case(*one, small=False) for one in ON_A_GPU]
    return [_case(*one, small=True) for one in ON_A_CPU]


def _case(
    network: str,
    variant: str,
    precision: str,
    mode: str,
    pass_: str,
    implementations: tuple[str, ...],
    seconds: float,
    batch: int | None = None,
    *,
    small: bool,
) -> Case:
    of = NETWORKS[network]
    usual, image = (of.small_batch, of.small_image) if small else (of.batch, of.image)
    return Case(network, variant, precision, mode, pass_, implementations, batch or usual, image, seconds)


def chosen(
    found: Sequence[Work], network_names: Sequence[str], implementation_names: Sequence[str], modes: Sequence[str]
) -> list[Work]:
    """The part for these networks and modes with these implementations; what is left without any is left out."""
    result: list[Work] = []
    for one in found:
        kept = tuple(name for name in one.implementations if name in implementation_names)
        if kept and one.mode in modes and one.network in network_names:
            result.append(
                replace(one, implementations=kept, seconds=one.seconds * len(kept) / len(one.implementations))
            )
    return result


# In order of importance, as each takes half a minute to compile.
COMPILED_RESIDUAL = (c.RELU_MINIMUM.name, FUSED, RELU)
COMPILED_PLAIN = (c.RELU_MINIMUM.name, IN_PLACE, RELU)

LARGE_BATCH = 256  # where the device is busy for longer than the host needs to launch its work
# With the seconds that each takes on an H100, about, or is thought to take, and a batch that is not the usual one.
ON_A_GPU = (
    ("resnet50", FULL, AMP, EAGER, TRAIN, IMPLEMENTATIONS, 16),
    ("resnet50", FULL, FP32, EAGER, TRAIN, MAIN, 23),
    ("resnet50", FULL, AMP, EAGER, TRAIN, MAIN, 13, LARGE_BATCH),
    ("resnet50", FULL, AMP, COMPILED, TRAIN, COMPILED_RESIDUAL, 80),
    ("mobilenet_v2", FULL, AMP, EAGER, TRAIN, NO_SUMS, 21),
    ("resnet50", FULL, AMP, EAGER, INFERENCE, MAIN, 4),
    ("inception_v3", FULL, AMP, EAGER, TRAIN, FEW, 45),
    ("resnet101", FULL, AMP, EAGER, TRAIN, MAIN, 10),
    ("resnet50", HEAD, AMP, EAGER, TRAIN, ONE_LAYER, 4),
    Search("resnet50", AMP, (RELU, c.RELU_MINIMUM.name, FUSED), 25),
    # In bfloat16 its largest tensors would have more than 2^31 elements, where other limits than memory begin.
    Search("mobilenet_v2", FP32, (RELU, c.RELU_MINIMUM.name, IN_PLACE), 25),
    ("mobilenet_v2", FULL, AMP, COMPILED, TRAIN, COMPILED_PLAIN, 80),
    ("mobilenet_v2", FULL, FP32, EAGER, TRAIN, FEW, 27),
    ("resnet50", FULL, FP32, EAGER, INFERENCE, MAIN, 4),
    ("mobilenet_v2", FULL, AMP, EAGER, INFERENCE, FEW, 3),
    ("inception_v3", FULL, AMP, EAGER, INFERENCE, FEW, 4),
    ("resnet101", FULL, AMP, EAGER, INFERENCE, FEW, 4),
    ("mobilenet_v2", HEAD, AMP, EAGER, TRAIN, ONE_LAYER, 3),
    ("inception_v3", HEAD, AMP, EAGER, TRAIN, ONE_LAYER, 5),
    ("resnet101", HEAD, AMP, EAGER, TRAIN, ONE_LAYER, 4),
    ("resnet101", FULL, FP32, EAGER, TRAIN, FEW, 12),
    ("inception_v3", FULL, FP32, EAGER, TRAIN, FEW, 14),
    ("resnet50", FULL, AMP, COMPILED, INFERENCE, COMPILED_RESIDUAL, 40),
)
ON_A_CPU = (
    ("resnet50", FULL, FP32, EAGER, TRAIN, IMPLEMENTATIONS, 40),
    ("mobilenet_v2", FULL, FP32, EAGER, TRAIN, NO_SUMS, 20),
    ("resnet50", FULL, FP32, EAGER, INFERENCE, MAIN, 10),
    ("inception_v3", FULL, FP32, EAGER, TRAIN, FEW, 30),
    ("resnet101", FULL, FP32, EAGER, TRAIN, FEW, 30),
    ("resnet50", HEAD, FP32, EAGER, TRAIN, ONE_LAYER, 15),
    ("mobilenet_v2", FULL, FP32, EAGER, INFERENCE, FEW, 5),
    ("mobilenet_v2", FULL, AMP, EAGER, TRAIN, FEW, 30),
)


def run_case(
    case: Case, budget: Budget, platform: Platform, until: float | None = None
) -> tuple[list[Row], list[Failure]]:
    """Time every implementation of a case; one that fails is left out, with its reason.

    Args:
        until: as in ``attempts.attempt``.
    """
    data = networks.data(case.batch, case.image, platform.device, memory_format(case.precision))
    begun, failures = attempt(
        case.implementations, case.label, lambda name: _begun(case, name, data, platform), platform.release, until
    )
    host: dict[str, list[float]] = {name: [] for name in begun}
    timed = [Timed(name, (noting(one.subject.step, host[name]),)) for name, one in begun.items()]
    samples = interleave(timed, budget, sampler=platform.sampler)
    seconds = {name: found.seconds() for name, found in samples.items()}
    rows: list[Row] = []
    for name, of in seconds.items():
        rows.append(
            {
                "network": case.network,
                "variant": case.variant,
                "precision": case.precision,
                "mode": case.mode,
                "pass": case.pass_,
                "implementation": name,
                "batch": case.batch,
                "image": case.image,
                "caps": sum(cap.numel() for cap in caps(begun[name].subject.model)),
                **of.in_ms(),
                "host_ms": statistics.median(host[name][-of.samples :]) * 1e3 if platform.sampler else None,
                "images_per_s": case.batch / of.median,
                "ratio_to_relu": of.median / seconds[RELU].median if RELU in seconds else None,
                "peak_bytes": begun[name].peak_bytes,
                "saved_bytes": begun[name].saved_bytes,
            }
        )
    return rows, failures


def noting(step: Callable[[], None], seconds: list[float]) -> Callable[[object], None]:
    """The step, with a note of how long the host took: on a GPU, to launch all of it."""

    def noted(_: object) -> None:
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)

    return noted


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


def forget(done: Work, platform: Platform) -> None:
    """Give back what was taken: memory, and compiled code."""
    if done.mode == COMPILED:
        torch._dynamo.reset()
    platform.release()
