"""Source text of networks that hypothesis puts together from what users write around a ReLU."""

from __future__ import annotations

import textwrap

from hypothesis import strategies as st

HEADER = """\
import functools
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import relu as other_name

TABLE = {"relu": F.relu, "relu6": F.relu6}


def helper(x):
    return F.relu(x)


def applied(function, x):
    return function(x)

"""

# Expressions of a tensor {x}.
VALUES = (
    "self.lin({x})",
    "self.lin2({x}) - 0.1",
    "{x} - 0.2",
    "self.drop(self.lin({x}))",
    "F.dropout({x}, 0.3, self.training)",
    "self.lin({x}) + {x}",
    "torch.add(self.lin2({x}), {x})",
    "{x} + 0.5 * self.lin({x})",
)
ACTIVATIONS = (
    "F.relu({x})",
    "F.relu(input={x})",
    "F.relu({x}, inplace=False)",
    "torch.relu({x})",
    "({x}).relu()",
    "({x}).clamp(min=0)",
    "torch.clamp({x}, 0, 4)",
    "F.relu6({x})",
    "F.hardtanh({x}, 0.0, 2.0)",
    "F.threshold({x}, 0, 0)",
    "other_name({x})",
    "nn.ReLU()({x})",
    "self.act({x})",
    "self.act(input={x})",
    "self.act(*[{x}])",
    "self.alias({x})",
    "self.act6({x})",
    "self.layers[1]({x})",
    "self.layers[-1]({x})",
    "self.acts[0]({x})",
    'self.table["b"]({x})',
    'self.named["a"]({x})',
    'getattr(self, "act")({x})',
    "getattr(F, 'relu')({x})",
    "self.function({x})",
    "self.partial({x})",
    "self._hidden({x})",
    'TABLE["relu"]({x})',
    "helper({x})",
    "applied(self.act, {x})",
    "applied(F.relu, {x})",
    "sum(F.relu(part) for part in ({x}, self.lin({x})))",
    "torch.stack([self.act(part) for part in ({x}, self.lin2({x}))]).mean(0)",
    "list(map(F.relu, [{x}]))[0]",
    "(lambda value: F.relu(value))({x})",
    "self.block({x})",
    "self.seq({x})",
    "self.seq[:2]({x})",
    "self.method({x})",
    "self.computed({x})",
    "self.of_class({x})",
    "torch.utils.checkpoint.checkpoint(self.method, {x}, use_reentrant=False)",
    "(F.relu({x}) if self.training else torch.relu({x}) * 2)",
)
# Statements that change x; the indented line is another statement, or several.
STATEMENTS = (
    "x = {activation}",
    "x = {activation} + {activation}",
    "y = {value}\ny += x\nx = F.relu(y)",
    "y = self.lin(x)\ny += x\ny = self.act(y)\nx = y",
    "y = self.lin(x)\nidentity = y\ny = y + x\nx = F.relu(y) + identity",
    "y = self.lin(x)\nF.relu_(y)\nx = y",
    "y = self.lin(x)\ny.relu_()\nx = y",
    "y = self.lin(x)\nself.act_inplace(y)\nx = y",
    "act = self.act\nx = act(self.lin(act(x) - 0.1))",
    "act = functools.partial(F.relu, inplace=False)\nx = act(x - 0.1)",
    "act = nn.ReLU6()\nx = act({value})",
    "act = self.act if x.dim() == 2 else F.relu\nx = act({value})",
    "def inner(value):\n    return F.relu(value)\nx = inner({value})",
    "if (y := {activation}) is not None:\n    x = y",
    "if self.training:\n    {body}\nelse:\n    {body}",
    "if x.size(0) == 3:\n    {body}",
    "if self.flag:\n    {body}",
    "for _ in range(2):\n    {body}",
    "for layer in self.layers:\n    x = layer(x)",
    "for layer in self.seq:\n    x = layer(x) if not isinstance(layer, nn.ReLU) else layer(x) * 2",
    "for layer, act in zip(self.lins, self.acts):\n    x = act(layer(x))",
    "for layer in self.lins:\n    x = self.act(layer(x) + x)",
    "for name, layer in self.named.items():\n    x = layer(x)",
    "with torch.enable_grad():\n    {body}",
    "try:\n    {body}\nfinally:\n    pass",
    "match x.dim():\n    case 2:\n        {body}\n    case _:\n        x = torch.relu(x)",
    "x = x + 0 * {activation}",
)
INIT = """\
    def __init__(self):
        super().__init__()
        self.lin, self.lin2, self.drop = nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout(0.3)
        self.act, self.act6, self.act_inplace = nn.ReLU(), nn.ReLU6(), nn.ReLU(inplace=True)
        self.alias, self.function, self.flag = self.act, F.relu, False
        self.layers = nn.ModuleList([nn.Linear(4, 4), {kind}(), nn.Linear(4, 4), {shared}])
        self.seq = nn.Sequential(nn.Linear(4, 4), {shared}, nn.Dropout(0.2), {shared})
        self.named = nn.ModuleDict({{"l": nn.Linear(4, 4), "a": {shared}}})
        self.acts = [nn.ReLU(), {shared}]
        self.lins = nn.ModuleList([nn.Linear(4, 4) for _ in self.acts])
        self.table = {{"a": {kind}(), "b": {shared}}}
        self.partial = functools.partial({partial})
        self._hidden = nn.ReLU()
        self.block = {block}
"""


@st.composite
def expressions(draw: st.DrawFn) -> str:
    x = "x"
    for _ in range(draw(st.integers(1, 2))):
        x = draw(st.sampled_from(VALUES)).format(x=x) if draw(st.booleans()) else x
        x = draw(st.sampled_from(ACTIVATIONS)).format(x=x)
    return x


@st.composite
def statements(draw: st.DrawFn, depth: int = 0) -> str:
    shapes = [one for one in STATEMENTS if depth < 2 or "{body}" not in one]
    text = draw(st.sampled_from(shapes))
    for name, made in (("activation", expressions()), ("value", st.sampled_from(VALUES))):
        while "{" + name + "}" in text:
            text = text.replace("{" + name + "}", draw(made).format(x="x"), 1)
    while "{body}" in text:
        before = text[: text.index("{body}")]
        indent = " " * (len(before) - before.rfind("\n") - 1)
        text = text.replace("{body}", textwrap.indent(draw(statements(depth + 1)), indent).lstrip(), 1)
    return text


@st.composite
def bodies(draw: st.DrawFn, *, most: int = 4) -> str:
    return "\n".join(draw(st.lists(statements(), min_size=1, max_size=most)))


def _method(signature: str, body: str, *, before: str = "", after: str = "return x") -> str:
    lines = [*before.splitlines(), f"def {signature}:", *textwrap.indent(f"{body}\n{after}", "    ").splitlines()]
    return textwrap.indent("\n".join(lines), "    ") + "\n\n"


@st.composite
def sources(draw: st.DrawFn) -> str:
    """A module with a class ``Network`` that takes a (3, 4) tensor."""
    shared = draw(st.sampled_from(["self.act", "nn.ReLU()", "self.act6"]))
    kinds = st.sampled_from(["nn.ReLU", "nn.ReLU6"])
    partial = draw(st.sampled_from(["F.relu", "self.act", "F.hardtanh, min_val=0.0, max_val=5.0"]))
    simple = st.sampled_from([one for one in ACTIVATIONS if "method" not in one and "computed" not in one])

    def one_class(name: str, base: str, block: str, forward: str) -> str:
        no_block = simple.filter(lambda text: "block" not in text)
        inner = no_block if block == "nn.Identity()" else simple
        decorator = draw(st.sampled_from(["", "@torch.no_grad()", "@torch.compiler.disable"]))
        text = f"class {name}({base}):\n"
        if base == "nn.Module":
            text += INIT.format(shared=shared, kind=draw(kinds), partial=partial, block=block) + "\n"
            text += _method("method(self, x)", f"x = {draw(inner).format(x='x')}")
            text += _method("computed(self, x)", "x = F.relu(self.lin2(x))", before=decorator)
            text += _method("of_class(cls, x)", "x = F.relu(x)", before="@classmethod")
        return text + _method("forward(self, x)", forward)

    inner = draw(bodies(most=1))
    text = HEADER + one_class("Block", "nn.Module", "nn.Identity()", inner) + "\n"
    text += one_class("Base", "nn.Module", "Block()", draw(bodies())) + "\n"
    text += one_class("Middle", "Base", "", "x = super().forward(x)\n" + draw(bodies(most=1))) + "\n"
    base = draw(st.sampled_from(["Base", "Middle"]))
    return text + one_class("Network", base, "", draw(bodies(most=2)) + "\nx = super().forward(self.lin2(x))")
