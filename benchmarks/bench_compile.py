"""Training steps of compiled networks, in both forms of the activation: `python -m benchmarks compiled --help`."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import dreluop
from benchmarks.harness import implementations as c
from benchmarks.harness.attempts import attempt
from benchmarks.harness.cli import Bench, Run
from benchmarks.harness.cuda_graphs import sample_in_a_row
from benchmarks.harness.interleave import Budget, Timed, interleave
from benchmarks.harness.machine import Platform
from benchmarks.harness.records import Record
from benchmarks.harness.table import Column, Table, facts, is_known, noise, pivot
from benchmarks.models.implementations import CAP, SEED, PlainDReLU
from benchmarks.models.steps import (
    AMP,
    FP32,
    LEARNING_RATE,
    MOMENTUM,
    memory_format,
    noting,
    searching_algorithms,
)
from dreluop.backends.selection import Form
from dreluop.caps.statistics import capped_layers
from dreluop.surgery import replace_activations
from studies.drelu_paper.models import dense_relu

RELU, CLAMP = "relu", c.CLAMP.name
FORMS: dict[str, Form] = {"dreluop, opaque": "opaque", "dreluop, fused": "decompose"}
BY_RULE = "dreluop"
IMPLEMENTATIONS = (CLAMP, *FORMS, BY_RULE, RELU)
CLASSES = 10
BUDGETS = {
    "cpu": Budget(seconds=8.0, min_samples=15, max_samples=200, warmup=3, sample_seconds=0),
    "cuda": Budget(seconds=0.4, min_samples=7, max_samples=15, warmup=1, sample_seconds=0.04),
}
# The last of these steps replays CUDA graphs, which the second records.
WARM_UP = {"cpu": 1, "cuda": 4}
QUICK = Budget(seconds=0, min_samples=3, max_samples=3, warmup=1, sample_seconds=0)
COMPILER = "inductor"


@dataclass(frozen=True)
class Case:
    """A network, its batch, and how it runs.

    Attributes:
        build: makes the network with plain ReLUs, the same each time.
        sample: shape of an input.
        precision: AMP is autocast to bfloat16 in channels-last, as in ``bench_models``.
        graphs: compiled with ``mode="reduce-overhead"``: forward and backward are CUDA graphs.
        seconds: what it takes on the device it is meant for, about.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: int
    sample: tuple[int, ...]
    precision: str = FP32
    graphs: bool = False
    seconds: float = 0.0
    implementations: tuple[str, ...] = IMPLEMENTATIONS

    @property
    def how(self) -> str:
        """What is not as usual."""
        return ", ".join([AMP] * (self.precision == AMP) + ["CUDA graphs"] * self.graphs)

    @property
    def label(self) -> str:
        how = f", {self.how}" if self.how else ""
        return f"{self.name}{how}, {self.batch} x {'x'.join(map(str, self.sample))}"


def _resnet18() -> nn.Module:
    from torchvision import models  # noqa: PLC0415 (optional)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: nn.Module = models.resnet18(weights=None, num_classes=CLASSES)
    return model


DENSE = Case("dense", lambda: dense_relu(SEED), 64, (784,))
# The more telling first, but for what takes long.
CASES: dict[str, tuple[Case, ...]] = {
    "cpu": (Case("resnet18", _resnet18, 4, (3, 64, 64)), DENSE),
    "cuda": (
        replace(DENSE, graphs=True, seconds=15),
        replace(DENSE, seconds=10),
        replace(DENSE, batch=1024, graphs=True, seconds=10),
        replace(DENSE, batch=1024, seconds=10),
        # Most of it compiling, and so not before the others.
        Case("resnet18", _resnet18, 64, (3, 224, 224), AMP, seconds=120),
    ),
}


def cases(kind: str, settings: Mapping[str, Any]) -> Sequence[Case]:
    return (DENSE,) if settings.get("quick") else CASES[kind]


def build(case: Case, implementation: str) -> nn.Module:
    """The network with every ReLU replaced, a cap per channel, residual sums where ours can take them."""
    model = case.build().train()
    if implementation == RELU:
        return model
    replace_activations(model, init=CAP, fuse=implementation != CLAMP)
    if implementation == CLAMP:
        for name, layer in capped_layers(model).items():
            model.set_submodule(name, PlainDReLU(layer, c.clamp_tensor))
    return model


def training_step(case: Case, implementation: str, data: Tensor, labels: Tensor) -> Callable[[], None]:
    """A step of SGD with momentum, the network compiled; compiles at the first call, and leaves no gradients.

    Args:
        data: of the precision's ``memory_format``; the network is trained on its device.
    """
    kind = data.device.type
    model = build(case, implementation).to(device=data.device, memory_format=memory_format(case.precision))
    options: dict[str, Any] = {"mode": "reduce-overhead"} if case.graphs else {}
    forward = torch.compile(model, dynamic=False, fullgraph=True, backend=COMPILER, **options)
    amp = case.precision == AMP
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=MOMENTUM, foreach=True)
    form = FORMS.get(implementation, "auto")

    def step() -> None:
        if case.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with dreluop.compile_mode(form):
            with torch.autocast(kind, torch.bfloat16) if amp else contextlib.nullcontext():
                loss = nn.functional.cross_entropy(forward(data), labels)
            loss.backward()
            optimizer.step()
            # Those of CUDA graphs are in memory that the next implementation's may use.
            optimizer.zero_grad(set_to_none=True)

    return step


def run(case: Case, with_: Run, budget: Budget | None = None) -> list[dict[str, Any]]:
    """Time a step of every implementation; one that fails or has no time left is left out, with its reason."""
    platform = with_.platform
    on_gpu = platform.kind == "cuda"
    torch._dynamo.reset()
    platform.release()
    data, labels = _data(case, platform)

    def begin(name: str) -> Callable[[], None]:
        skipped = graphs_skipped()
        step = training_step(case, name, data, labels)
        for _ in range(WARM_UP[platform.kind]):
            step()
        if case.graphs and graphs_skipped() > skipped:
            raise RuntimeError("torch.compile left CUDA graphs out")
        return step

    with _compile_workers(platform), searching_algorithms(on_gpu):
        begun, failures = attempt(case.implementations, begin, platform.release, with_.until)
        host: dict[str, list[float]] = {name: [] for name in begun}
        timed = [Timed(name, (noting(step, host[name]),)) for name, step in begun.items()]
        budget = budget or (QUICK if with_.quick else BUDGETS[platform.kind])
        samples = interleave(timed, budget, sampler=sample_in_a_row if on_gpu else platform.sample)
    seconds = {name: found.seconds() for name, found in samples.items()}
    clamp = seconds[CLAMP].median if CLAMP in seconds else None
    rows = [
        {
            "implementation": name,
            "network": case.name,
            "how": case.how,
            "batch": case.batch,
            **of.in_ms(),
            "host_ms": statistics.median(host[name]) * 1e3 if on_gpu else None,
            "ratio_to_clamp": None if clamp is None else of.median / clamp,
        }
        for name, of in seconds.items()
    ]
    return rows + failures


def _data(case: Case, platform: Platform) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SEED + 1)
    data = torch.randn(case.batch, *case.sample, generator=generator)
    labels = torch.randint(CLASSES, (case.batch,), generator=generator).to(platform.device)
    if data.ndim == 4:
        data = data.to(memory_format=memory_format(case.precision))
    return data.to(platform.device), labels


def graphs_skipped() -> int:
    return int(torch._dynamo.utils.counters["inductor"]["cudagraph_skips"])


def _compile_workers(platform: Platform) -> contextlib.AbstractContextManager[object]:
    """As many as inductor likes for a GPU: they end their work before the first step does, and then wait for more.

    On a CPU none: workers that idle beside the measurement would be measured too.
    """
    if platform.kind == "cuda":
        return contextlib.nullcontext()
    patched: contextlib.AbstractContextManager[object] = torch._inductor.config.patch(compile_threads=1)
    return patched


def _step(row: Mapping[str, Any]) -> str:
    ratio = row["ratio_to_clamp"]
    over = f" ({ratio:.2f})" if is_known(ratio) and row["implementation"] != CLAMP else ""
    return f"{row['ms']:.3g} [{row['q1_ms']:.3g} .. {row['q3_ms']:.3g}]{over}"


NETWORK = (
    Column("network", lambda row: ", ".join(filter(None, (row["network"], row["how"])))),
    Column("batch", "batch"),
)


def tables(record: Record) -> list[Table]:
    """A line per network: the times, and, of a GPU, how long the host takes for its part."""
    frame = record.frame()
    times = [Column(name, _step, where={"implementation": name}) for name in IMPLEMENTATIONS]
    host = [Column(name, "host_ms", "{:.3g}", {"implementation": name}) for name in IMPLEMENTATIONS]
    title = "Compiled training steps, ms: median, quartiles, over the clamp model"
    found = [
        pivot(title, frame, ["case"], (*NETWORK, *times)),
        pivot("Time of the host to launch such a step, ms", frame, ["case"], (*NETWORK, *host), known=IMPLEMENTATIONS),
    ]
    return [table for table in found if table.rows]


def headline(record: Record) -> str:
    spread = noise(record.frame(), "an implementation")
    return facts(record, BENCH.missing(record), spread, quick="quick run: three samples")


BENCH = Bench(
    "compiled", "Time whole training steps of compiled networks: clamp, ours in both forms, plain ReLU.", cases, run,
    ("implementation",), headline, tables,
)  # fmt: skip
BENCHES = {BENCH.name: BENCH}
