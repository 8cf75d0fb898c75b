"""The benchmark of compiled networks: its implementations are one network, its rows, its command, its tables."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dreluop
from benchmarks import report
from benchmarks.compiled import __main__ as command
from benchmarks.compiled import suite
from benchmarks.gpu.document import Gpu
from benchmarks.harness import machine as results
from benchmarks.harness.cuda_graphs import sample_in_a_row
from benchmarks.models.implementations import PlainDReLU
from benchmarks.models.steps import AMP, Platform, cpu_place
from benchmarks.running import OUT_OF_TIME
from dreluop.backends import native
from tests.benchmarks.gpu.conftest import gpu as fake_gpu
from tests.benchmarks.models.conftest import TinyNetwork
from tests.support.optional import torchvision_or_skip

gpu = fake_gpu
ACTIVATIONS = {"resnet18": 17, "dense": 3}


@pytest.fixture(autouse=True)
def without_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "COMPILER", "eager")


@pytest.mark.parametrize("case", suite.CASES["cpu"], ids=lambda case: case.name)
def test_every_implementation_is_the_same_network(case: suite.Case) -> None:
    if case.name == "resnet18":
        torchvision_or_skip()
    data = torch.randn(2, *case.sample)
    results = []
    for name in suite.IMPLEMENTATIONS:
        model = suite.build(case, name)
        kinds = [type(m) for m in model.modules() if isinstance(m, nn.ReLU | PlainDReLU | dreluop.DReLU)]
        # torchvision calls one nn.ReLU several times.
        assert len(kinds) == ACTIVATIONS[case.name] or name == suite.RELU
        assert (name == suite.RELU) == (nn.ReLU in kinds)
        assert (name == suite.CLAMP) == (PlainDReLU in kinds)
        with torch.no_grad():
            for module in model.modules():
                if hasattr(module, "cap"):
                    module.cap.fill_(math.inf)
            results.append(model(data))
    for found in results[1:]:
        torch.testing.assert_close(found, results[0])


def test_each_form_is_compiled_in_its_form(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[str]] = {}
    for name in (*suite.FORMS, suite.BY_RULE):
        targets = seen.setdefault(name, set())

        def keep(graph: torch.fx.GraphModule, _: object, targets: set[str] = targets) -> object:
            targets |= {str(node.target) for node in graph.graph.nodes if "dreluop." in str(node.target)}
            return graph.forward

        torch._dynamo.reset()
        monkeypatch.setattr(suite, "COMPILER", keep)
        suite.training_step(suite.DENSE, name, torch.randn(3, 784), torch.tensor([1, 2, 3]))()
    assert all(target.split(".")[2] == "default" for target in seen["dreluop, opaque"])
    assert all(target.split(".")[2].startswith("fused") for target in seen["dreluop, fused"])
    assert seen[suite.BY_RULE] == seen["dreluop, fused"] != seen["dreluop, opaque"]


def test_the_command_writes_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--quick", "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / command.FILE_NAME).read_text())
    assert document["complete"] and document["quick"] and document["failures"] == []
    assert [row["implementation"] for row in document["rows"]] == list(suite.IMPLEMENTATIONS)
    clamp = document["rows"][0]
    for row in document["rows"]:
        assert row["ratio_to_clamp"] == pytest.approx(row["ms"] / clamp["ms"])
        assert 0 < row["min_ms"] <= row["q1_ms"] <= row["ms"] <= row["q3_ms"]
        assert row["samples"] == 3
    printed = capsys.readouterr().out
    assert "quick run" in printed and "| dense" in printed


def test_a_implementation_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: suite.Case, name: str) -> nn.Module:
        if name == suite.CLAMP:
            raise RuntimeError("no such thing")
        return case.build()

    monkeypatch.setattr(suite, "build", broken)
    rows, failures = suite.run_case(suite.DENSE, suite.IMPLEMENTATIONS, suite.QUICK, cpu_place())
    assert [failure["implementation"] for failure in failures] == [suite.CLAMP]
    assert [row["implementation"] for row in rows] == list(suite.IMPLEMENTATIONS[1:])
    assert all(row["ratio_to_clamp"] is None for row in rows)


@pytest.fixture
def in_a_row(monkeypatch: pytest.MonkeyPatch) -> Platform:
    """The CPU in the part of a GPU: steps in a row, by the host's clock."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return replace(cpu_place(), sampler=sample_in_a_row)


@pytest.mark.parametrize("graphs", [False, True], ids=["amp", "amp_graphs"])
def test_a_case_of_a_gpu(graphs: bool, in_a_row: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
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
    case = suite.Case("tiny", TinyNetwork, 6, (3, 8, 8), AMP, graphs)
    rows, failures = suite.run_case(case, suite.IMPLEMENTATIONS, suite.QUICK, in_a_row)
    assert failures == []
    assert seen == {(True, True)}
    assert asked == ["reduce-overhead" if graphs else None] * len(suite.IMPLEMENTATIONS)
    assert {row["how"] for row in rows} == {"AMP bf16, CUDA graphs" if graphs else "AMP bf16"}
    # A row of steps ends after the host has launched all of them.
    assert all(row["host_ms"] > 0 and row["min_ms"] > 0 for row in rows)


def test_the_command_for_a_gpu(in_a_row: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_cpu = command.new_document(torch.device("cpu"), quick=False)
    monkeypatch.setattr(command, "served_by_cuda", lambda parser: None)
    monkeypatch.setattr(command, "new_document", lambda device, quick: of_cpu)
    monkeypatch.setattr(suite, "platform_of", {"cuda": in_a_row}.__getitem__)
    monkeypatch.setitem(suite.CASES, "cuda", (replace(suite.DENSE, batch=3), replace(suite.DENSE, batch=5)))
    monkeypatch.setitem(suite.BUDGET, "cuda", suite.QUICK)
    options = ["--device", "cuda", "--implementations", suite.CLAMP, suite.BY_RULE, "--out", str(tmp_path)]
    assert command.main(options) == 0
    document = json.loads((tmp_path / command.FILE_NAME).read_text())
    assert [(row["batch"], row["implementation"]) for row in document["rows"]] == [
        (batch, name) for batch in (3, 5) for name in (suite.CLAMP, suite.BY_RULE)
    ]
    assert all(row["host_ms"] > 0 for row in document["rows"])


def test_graphs_that_torch_leaves_out_are_a_failure(in_a_row: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(model: nn.Module, **_: Any) -> nn.Module:
        torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] += 1
        return model

    monkeypatch.setattr(torch, "compile", compile_)
    for graphs in (True, False):
        case = replace(suite.DENSE, batch=2, graphs=graphs)
        rows, failures = suite.run_case(case, (suite.CLAMP,), suite.QUICK, in_a_row)
        reasons = [failure["reason"] for failure in failures]
        assert reasons == ["RuntimeError: torch.compile left CUDA graphs out"] * graphs
        assert len(rows) == 1 - graphs


def test_no_gradient_outlives_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []
    build = suite.build

    def keep(case: suite.Case, name: str) -> nn.Module:
        made.append(build(case, name))
        return made[-1]

    monkeypatch.setattr(suite, "build", keep)
    step = suite.training_step(suite.DENSE, suite.BY_RULE, torch.randn(3, 784), torch.tensor([1, 2, 3]))
    before = [parameter.clone() for parameter in keep(suite.DENSE, suite.BY_RULE).parameters()]
    step()
    after = list(made[0].parameters())
    assert all(parameter.grad is None for parameter in after)
    assert not all(torch.equal(one, other) for one, other in zip(before, after, strict=True)), "nothing was learned"


def test_what_does_not_fit_is_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long, short = replace(suite.DENSE, graphs=True, seconds=1000), replace(suite.DENSE, batch=2)
    monkeypatch.setitem(suite.CASES, "cpu", (long, short))
    monkeypatch.setitem(suite.BUDGET, "cpu", suite.QUICK)
    assert command.main(["--limit", "500", "--implementations", suite.CLAMP, suite.RELU, "--out", str(tmp_path)]) == 0
    assert command.main(["--limit", "300", "--implementations", suite.CLAMP, suite.RELU, "--out", str(tmp_path)]) == (
        OUT_OF_TIME
    )
    document = json.loads((tmp_path / command.FILE_NAME).read_text())
    assert document["missing"] == ["dense, CUDA graphs, 64 x 784"] and not document["complete"]
    assert {row["batch"] for row in document["rows"]} == {2}


def test_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long, short = replace(suite.DENSE, graphs=True, seconds=1000), replace(suite.DENSE, batch=2)
    monkeypatch.setitem(suite.CASES, "cpu", (long, short))
    monkeypatch.setitem(suite.BUDGET, "cpu", suite.QUICK)
    options = ["--implementations", suite.CLAMP, suite.RELU, "--out", str(tmp_path)]
    assert command.main([*options, "--limit", "300"]) == OUT_OF_TIME
    former = json.loads((tmp_path / command.FILE_NAME).read_text())
    assert command.main([*options, "--resume", str(tmp_path / command.FILE_NAME)]) == 0
    document = json.loads((tmp_path / command.FILE_NAME).read_text())
    assert document["complete"] and document["missing"] == []
    assert document["rows"][:2] == former["rows"]
    assert [row["how"] for row in document["rows"][2:]] == ["CUDA graphs"] * 2
    assert [run["cases"] for run in document["earlier"]] == [[short.label]]
    assert "in several runs: 1 cases on " in capsys.readouterr().out
    # Of all implementations, none of it was measured whole.
    monkeypatch.setattr(suite, "run_case", lambda case, *_: (seen.append(case.label), ([], []))[1])
    seen: list[str] = []
    command.main(["--out", str(tmp_path), "--resume", str(tmp_path / command.FILE_NAME)])
    assert seen == [long.label, short.label]


def test_on_a_gpu_what_takes_long_comes_last() -> None:
    *others, last = suite.CASES["cuda"]
    assert last.seconds > max(case.seconds for case in others)


def test_the_report_has_a_table_for_each_device(tmp_path: Path, gpu: Gpu) -> None:
    def rows(**more: Any) -> list[dict[str, Any]]:
        times = {"ms": 2.0, "q1_ms": 1.9, "q3_ms": 2.1, "ratio_to_clamp": 0.5, **more}
        return [{"network": "dense", "batch": 64, "implementation": name, **times} for name in suite.IMPLEMENTATIONS]

    of_cpu = {**command.new_document(torch.device("cpu"), quick=False), "rows": rows(), "complete": True}
    # As the files were before there was a GPU.
    results.save(of_cpu, tmp_path / "a" / command.FILE_NAME)
    alone = report.compiled(tmp_path)
    assert alone.count("**Compiled training steps") == 1 and "host" not in alone
    on_gpu = command.new_document(torch.device("cuda"), quick=False)
    assert on_gpu["device"] == gpu and "cuda" in on_gpu["versions"]
    results.save({**on_gpu, "rows": rows(how="CUDA graphs", host_ms=0.25)}, tmp_path / "b" / command.FILE_NAME)
    both = report.compiled(tmp_path)
    assert both.startswith(alone)
    assert "(Some GPU 80GB, driver 580.1; " in both
    assert f"| dense, CUDA graphs | 64 | 2 [1.9 .. 2.1] |{' 2 [1.9 .. 2.1] (0.50) |' * 4}" in both
    assert f"**Time of the host to launch such a step, ms**\n\n| network | batch | {suite.CLAMP} |" in both
    assert f"| dense, CUDA graphs | 64 |{' 0.25 |' * 5}" in both


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        command.main(["--device", "cuda"])
    assert "torch sees no CUDA device" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(native, "cuda_reason", lambda: "driver too old")
    with pytest.raises(SystemExit, match="2"):
        command.main(["--device", "cuda"])
    assert "driver too old" in capsys.readouterr().err


def test_wrong_arguments() -> None:
    for arguments in (["--threads", "0"], ["--limit", "0"], ["--networks", "alexnet"]):
        with pytest.raises(SystemExit):
            command.main(arguments)
