"""The benchmark of compiled networks: its contenders are one network, its rows, its command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import dreluop
from benchmarks.compiled import __main__ as command
from benchmarks.compiled import suite
from benchmarks.models.contenders import PlainDReLU
from tests.optional import torchvision_or_skip

ACTIVATIONS = {"resnet18": 17, "dense": 3}


@pytest.fixture(autouse=True)
def without_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "COMPILER", "eager")


@pytest.mark.parametrize("case", suite.CASES, ids=lambda case: case.name)
def test_every_contender_is_the_same_network(case: suite.Case) -> None:
    if case.name == "resnet18":
        torchvision_or_skip()
    data = torch.randn(2, *case.sample)
    results = []
    for name in suite.CONTENDERS:
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
    assert [row["contender"] for row in document["rows"]] == list(suite.CONTENDERS)
    clamp = document["rows"][0]
    for row in document["rows"]:
        assert row["ratio_to_clamp"] == pytest.approx(row["ms"] / clamp["ms"])
        assert 0 < row["min_ms"] <= row["q1_ms"] <= row["ms"] <= row["q3_ms"]
        assert row["samples"] == 3
    printed = capsys.readouterr().out
    assert "quick run" in printed and "| dense" in printed


def test_a_contender_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: suite.Case, name: str) -> nn.Module:
        if name == suite.CLAMP:
            raise RuntimeError("no such thing")
        return case.build()

    monkeypatch.setattr(suite, "build", broken)
    rows, failures = suite.run_case(suite.DENSE, suite.CONTENDERS, suite.QUICK)
    assert [failure["contender"] for failure in failures] == [suite.CLAMP]
    assert [row["contender"] for row in rows] == list(suite.CONTENDERS[1:])
    assert all(row["ratio_to_clamp"] is None for row in rows)


def test_wrong_arguments() -> None:
    for arguments in (["--threads", "0"], ["--limit", "0"], ["--networks", "alexnet"]):
        with pytest.raises(SystemExit):
            command.main(arguments)
