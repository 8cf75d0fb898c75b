"""The benchmark of compiled networks: its implementations are one network, its rows, its command, its tables."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dreluop
from benchmarks import bench_compile
from benchmarks.bench_compile import BENCH, BY_RULE, CLAMP, DENSE, FORMS, IMPLEMENTATIONS, QUICK, RELU, Case
from benchmarks.harness.cli import Run, main
from benchmarks.harness.machine import Gpu, Platform
from benchmarks.harness.records import Record, load
from benchmarks.models.implementations import PlainDReLU
from benchmarks.models.steps import AMP
from tests.benchmarks.conftest import Processor, measured
from tests.benchmarks.models.conftest import TinyNetwork
from tests.support.optional import torchvision_or_skip
from tools import report

ACTIVATIONS = {"resnet18": 17, "dense": 3}


@pytest.fixture(autouse=True)
def without_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_compile, "COMPILER", "eager")


@pytest.mark.parametrize("case", bench_compile.CASES["cpu"], ids=lambda case: case.name)
def test_every_implementation_is_the_same_network(case: Case) -> None:
    if case.name == "resnet18":
        torchvision_or_skip()
    data = torch.randn(2, *case.sample)
    results = []
    for name in IMPLEMENTATIONS:
        model = bench_compile.build(case, name)
        kinds = [type(m) for m in model.modules() if isinstance(m, nn.ReLU | PlainDReLU | dreluop.DReLU)]
        # torchvision calls one nn.ReLU several times.
        assert len(kinds) == ACTIVATIONS[case.name] or name == RELU
        assert (name == RELU) == (nn.ReLU in kinds)
        assert (name == CLAMP) == (PlainDReLU in kinds)
        with torch.no_grad():
            for module in model.modules():
                if hasattr(module, "cap"):
                    module.cap.fill_(math.inf)
            results.append(model(data))
    for found in results[1:]:
        torch.testing.assert_close(found, results[0])


def test_each_form_is_compiled_in_its_form(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[str]] = {}
    for name in (*FORMS, BY_RULE):
        targets = seen.setdefault(name, set())

        def keep(graph: torch.fx.GraphModule, _: object, targets: set[str] = targets) -> object:
            targets |= {str(node.target) for node in graph.graph.nodes if "dreluop." in str(node.target)}
            return graph.forward

        torch._dynamo.reset()
        monkeypatch.setattr(bench_compile, "COMPILER", keep)
        bench_compile.training_step(DENSE, name, torch.randn(3, 784), torch.tensor([1, 2, 3]))()
    assert all(target.split(".")[2] == "default" for target in seen["dreluop, opaque"])
    assert all(target.split(".")[2].startswith("fused") for target in seen["dreluop, fused"])
    assert seen[BY_RULE] == seen["dreluop, fused"] != seen["dreluop, opaque"]


def test_the_command_writes_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(BENCH, ["--device", "cpu", "--threads", "1", "--quick", "--out", str(tmp_path)]) == 0
    record = load(tmp_path / "compiled.jsonl")
    assert record.run["settings"]["quick"] and record.failures == [] and BENCH.missing(record) == []
    assert [row["key"] for row in record.rows] == [
        {"case": "dense, 64 x 784", "implementation": name} for name in IMPLEMENTATIONS
    ]
    clamp = record.rows[0]
    for row in record.rows:
        assert row["ratio_to_clamp"] == pytest.approx(row["ms"] / clamp["ms"])
        assert 0 < row["min_ms"] <= row["q1_ms"] <= row["ms"] <= row["q3_ms"]
        assert row["samples"] == 3 and row["host_ms"] is None
    printed = capsys.readouterr().out
    assert "quick run" in printed and "dense" in printed


def test_an_implementation_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: Case, name: str) -> nn.Module:
        if name == CLAMP:
            raise RuntimeError("no such thing")
        return case.build()

    monkeypatch.setattr(bench_compile, "build", broken)
    *rows, failed = bench_compile.run(DENSE, Run(Processor()), QUICK)
    assert failed == {"implementation": CLAMP, "failure": "RuntimeError: no such thing"}
    assert [row["implementation"] for row in rows] == list(IMPLEMENTATIONS[1:])
    assert all(row["ratio_to_clamp"] is None for row in rows)


class OnGpu(Processor):
    """The CPU in the part of a GPU: steps in a row, by the host's clock."""

    kind = "cuda"


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return Run(OnGpu())


@pytest.mark.parametrize("graphs", [False, True], ids=["amp", "amp_graphs"])
def test_a_case_of_a_gpu(graphs: bool, on_gpu: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[Any, ...]] = set()
    asked: list[Any] = []

    def compile_(model: nn.Module, **options: Any) -> Any:
        asked.append(options.get("mode"))

        def watched(x: torch.Tensor) -> Any:
            lies = [tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (x, *model.parameters())]
            seen.add((all(lies[:2]), torch.is_autocast_enabled("cpu")))
            return model(x)

        return watched

    monkeypatch.setattr(torch, "compile", compile_)
    case = Case("tiny", TinyNetwork, 6, (3, 8, 8), AMP, graphs)
    rows = measured(bench_compile.run(case, on_gpu, QUICK))
    assert seen == {(True, True)}
    assert asked == ["reduce-overhead" if graphs else None] * len(IMPLEMENTATIONS)
    assert {row["how"] for row in rows} == {"AMP bf16, CUDA graphs" if graphs else "AMP bf16"}
    # A row of steps ends after the host has launched all of them.
    assert all(row["host_ms"] > 0 and row["min_ms"] > 0 for row in rows)


def test_graphs_that_torch_leaves_out_are_a_failure(on_gpu: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(model: nn.Module, **_: Any) -> nn.Module:
        torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] += 1
        return model

    monkeypatch.setattr(torch, "compile", compile_)
    for graphs in (True, False):
        case = replace(DENSE, batch=2, graphs=graphs, implementations=(CLAMP,))
        (row,) = bench_compile.run(case, on_gpu, QUICK)
        expected = "RuntimeError: torch.compile left CUDA graphs out" if graphs else None
        assert row.get("failure") == expected and ("ms" in row) is not graphs


def test_no_gradient_outlives_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []
    build = bench_compile.build

    def keep(case: Case, name: str) -> nn.Module:
        made.append(build(case, name))
        return made[-1]

    monkeypatch.setattr(bench_compile, "build", keep)
    step = bench_compile.training_step(DENSE, BY_RULE, torch.randn(3, 784), torch.tensor([1, 2, 3]))
    before = [parameter.clone() for parameter in keep(DENSE, BY_RULE).parameters()]
    step()
    after = list(made[0].parameters())
    assert all(parameter.grad is None for parameter in after)
    assert not all(torch.equal(one, other) for one, other in zip(before, after, strict=True)), "nothing was learned"


def test_on_a_gpu_what_takes_long_comes_last() -> None:
    *others, last = bench_compile.CASES["cuda"]
    assert last.seconds > max(case.seconds for case in others)


def record(label: str, **more: Any) -> Record:
    made = BENCH.new_record(Platform())
    times = {"ms": 2.0, "q1_ms": 1.9, "q3_ms": 2.1, "ratio_to_clamp": 0.5, "host_ms": None, "how": "", **more}
    rows = [{"implementation": name, "network": "dense", "batch": 64, **times} for name in IMPLEMENTATIONS]
    made.add(label, rows, BENCH.key)
    return made


def test_the_report_has_a_table_for_each_device(tmp_path: Path) -> None:
    record("dense, 64 x 784").save(tmp_path / "a" / BENCH.file_name)
    alone = report.REPORTS["compiled"](tmp_path)
    assert alone.count("**Compiled training steps") == 1 and "host" not in alone


def test_the_report_of_a_gpu(tmp_path: Path, gpu: Gpu) -> None:
    record("dense, CUDA graphs, 64 x 784", how="CUDA graphs", host_ms=0.25).save(tmp_path / "b" / BENCH.file_name)
    page = report.REPORTS["compiled"](tmp_path)
    assert f"({gpu['name']}, driver 580.1; " in page and "not all cases: 4 missing" in page
    assert f"| dense, CUDA graphs | 64 | 2 [1.9 .. 2.1] |{' 2 [1.9 .. 2.1] (0.50) |' * 4}" in page
    assert f"**Time of the host to launch such a step, ms**\n\n| network | batch | {CLAMP} |" in page
    assert f"| dense, CUDA graphs | 64 |{' 0.25 |' * 5}" in page
