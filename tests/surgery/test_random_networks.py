"""Networks put together at random: nothing is missed in silence, and nothing changes while caps are open."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from dreluop.surgery import replace_activations
from tests.surgery.counting import check, ran
from tests.surgery.random_networks import sources

_numbers = itertools.count()


@contextmanager
def imported(source: str, folder: Path) -> Iterator[Any]:
    """A module of this source, in a file so that it can be read, and by name so that it can be pickled."""
    name = f"random_network_{next(_numbers)}"
    file = folder / f"{name}.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[name]


def same(model: nn.Module, other: nn.Module, x: torch.Tensor) -> bool:
    return all(
        torch.equal(one, two)
        for training in (False, True)
        for one, two in zip(ran(model, x, training)[0], ran(other, x, training)[0], strict=True)
    )


@pytest.mark.parametrize("run", [True, False], ids=["example", "no_example"])
@settings(max_examples=15)
@given(source=sources())
def test_random_networks(tmp_path: Path, source: str, run: bool) -> None:
    torch.manual_seed(0)
    with imported(source, tmp_path) as module:
        model, x = module.Network(), torch.randn(3, 4)
        before = {cls: dict(vars(cls)) for cls in (module.Block, module.Base, module.Middle, module.Network)}
        options: dict[str, Any] = {"granularity": "channel" if run else "layer"}
        report = check(model, x, run=run, **options)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert same(other, model, x)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        again = replace_activations(model, example_input=x if run else None, **options)
        # What was left for want of a layer before it may have one now.
        assert {site.line for site in again.replaced} <= {site.line for site in report.left}, f"{report}\n{again}"
        now = model.state_dict()
        assert all(torch.equal(now[name], value) for name, value in state.items())
        assert {cls: dict(vars(cls)) for cls in before} == before


@settings(max_examples=4)
@given(source=sources())
def test_random_networks_compiled(fresh_compiler: None, tmp_path: Path, source: str) -> None:
    torch.manual_seed(0)
    with imported(source, tmp_path) as module:
        model, x = module.Network().eval(), torch.randn(3, 4)
        replace_activations(model, granularity="layer", init=0.5)
        expected = model(x.clone())  # A network may write to its input.
        torch.testing.assert_close(torch.compile(model, backend="eager")(x), expected)
        torch._dynamo.reset()
