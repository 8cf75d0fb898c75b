"""Networks around batch norms put together at random: fuse="batch_norm" changes nothing while caps are open."""

from __future__ import annotations

import copy
import textwrap
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dreluop.surgery import replace_activations
from tests.surgery.helpers import open_caps
from tests.surgery.test_random_networks import imported

HEADER = """\
import torch
import torch.nn.functional as F
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.lins = nn.ModuleList(nn.Linear(4, 4) for _ in range({count}))
        self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range({count}))
        self.seqs = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()) for _ in range({count}))
        self.act, self.same = nn.ReLU(inplace=True), nn.Identity()

    def forward(self, x):
"""
# What a batch norm gets, and what an activation is; {k} is another layer each time.
GIVEN = ("self.lins[{k}](x)", "x", "self.same(x)", "torch.cat([x, x])[: len(x)]")
ACTIVATIONS = ("F.relu({x})", "self.act({x})", "({x}).relu()", "F.relu6({x})", "torch.relu_({x})")
STATEMENTS = (
    "x = {act:self.norms[{k}]({given})}",
    "x = {act:self.norms[{k}]({given}) + x}",
    "x = {act:x + self.norms[{k}]({given})}",
    "x = {act:self.norms[{k}]({given}) + self.lins[{k}](x)}",
    "x = {act:self.norms[{k}](x) + x.mul_(0.5)}",
    "x = {act:x.mul_(0.5) + self.norms[{k}](x)}",
    "y = {given}\ny = self.norms[{k}](y)\ny = {act:y}\nx = x + y",
    "y = {given}\ny = self.norms[{k}](y)\n{between}\ny = {act:y}\nx = x + y",
    "y = self.norms[{k}]({given})\n{between}\ny += x\nx = {act:y}",
    "y = self.norms[{k}]({given})\n{between}\ny = y + x\nx = {act:y}",
    "y = self.norms[{k}]({given})\nz = y + self.lins[{k}](x)\nx = {act:z}",
    "y = self.norms[{k}]({given})\n{between}\nx = {act:y} + {reader}",
    "z = x\nz = self.norms[{k}](z)\nx = {act:z} * x",
    "y = self.lins[{k}](x)\ny += self.norms[{k}]({given})\nx = {act:y}",
    "if self.training:\n    y = self.norms[{k}](x)\n    x = {act:y}",
    "for _ in range(2):\n    y = self.norms[{k}](x)\n    x = {act:y}",
    "x = self.norms[{k}](x)\nfor _ in range(2):\n    x = {act:x} - 0.1",
    "try:\n    y = self.norms[{k}](x)\n    x = {act:y}\nfinally:\n    x = x + {reader}",
    "x = self.seqs[{k}](x)",
    "for layer in self.seqs[{k}]:\n    x = layer(x)",
    "x = self.seqs[{k}](x) + self.seqs[{k}][0](x)",
)
BETWEEN = ("", "x = x * 2", "x.add_(0.1)", "z = y", "x = self.lins[{k}](x)", "if self.training:\n    x = x + 1")
READERS = ("x", "y", "1", "(z if 'z' in locals() else x)")


@st.composite
def bodies(draw: st.DrawFn) -> str:
    lines = ["x = self.lins[0](x)", "y = z = x"]
    for k in range(1, draw(st.integers(2, 5))):
        text = draw(st.sampled_from(STATEMENTS)).replace("{between}", draw(st.sampled_from(BETWEEN)))
        text = text.replace("{given}", draw(st.sampled_from(GIVEN))).replace("{reader}", draw(st.sampled_from(READERS)))
        text = text.replace("{k}", str(k))
        if "{act:" in text:
            before, _, rest = text.partition("{act:")
            inner, _, after = rest.partition("}")
            text = before + draw(st.sampled_from(ACTIVATIONS)).replace("{x}", inner) + after
        lines.append(text)
    return "\n".join([*lines, "return x"])


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    outputs = []
    for training in (True, False):
        with torch.no_grad():
            outputs.append(model.train(training)(x.clone()))
    return [*outputs, *(value.double() for value in model.buffers())]


@settings(max_examples=60)
@given(body=bodies())
def test_nothing_changes_while_caps_are_open(tmp_path: Path, body: str) -> None:
    torch.manual_seed(0)
    with imported(HEADER.format(count=5) + textwrap.indent(body, " " * 8), tmp_path) as module:
        original, x = module.Network().double(), torch.randn(3, 4, dtype=torch.float64)
        model = copy.deepcopy(original)
        report = replace_activations(model, fuse="batch_norm", example_input=x)
        open_caps(model, report)
        for got, want in zip(results(model, x), results(original, x), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=lambda text: f"{text}\n{body}\n{report}")
