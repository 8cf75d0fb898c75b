"""Classes, files and errors around surgery: what stays as it was, and what is distinguished."""

from __future__ import annotations

import copy
import importlib.util
import os
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as users write it)
from torch import Tensor, nn

from dreluop import DReLU
from dreluop.surgery import replace_activations
from tests.surgery.counting import PlainReLUs, check
from tests.surgery.helpers import d_relus


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.act = nn.Linear(4, 4), nn.ReLU()
        self.gain = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.lin(self.act(self.lin(x))))


class WithArguments(Twice):
    def __new__(cls, **kwargs: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *, size: int) -> None:
        super().__init__()
        self.size = size

    def __getnewargs_ex__(self) -> Any:
        return (), {"size": self.size}


def inputs() -> Tensor:
    return torch.randn(3, 4)


@pytest.mark.parametrize("make", [Twice, lambda: WithArguments(size=4)])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(make: Any, protocol: int) -> None:
    model, x = make(), inputs()
    replace_activations(model, granularity="layer", init=0.1)
    for other in (pickle.loads(pickle.dumps(model, protocol=protocol)), copy.deepcopy(model), copy.copy(model)):
        assert torch.equal(other(x), model(x))
        assert type(other) is type(model)


def test_the_class_of_the_author_stays_as_it_was() -> None:
    before = dict(vars(Twice))
    model = Twice()
    replace_activations(model, example_input=inputs())
    assert dict(vars(Twice)) == before
    assert isinstance(model, Twice) and repr(model).startswith("Twice(")


def test_nothing_of_the_author_runs_when_a_class_is_made() -> None:
    class Meta(type):
        def __new__(mcs, name: str, bases: Any, members: Any, *, key: int) -> Any:
            return super().__new__(mcs, name, bases, members)

        def __init__(cls, name: str, bases: Any, members: Any, *, key: int) -> None:
            super().__init__(name, bases, members)

    class Registered(Twice, metaclass=Meta, key=1):
        names: tuple[str, ...] = ()

        def __init_subclass__(cls, **kwargs: Any) -> None:
            raise TypeError(cls.__name__)

    model = Registered()
    report = replace_activations(model, granularity="layer")
    assert len(report.replaced) == 2
    assert type(type(model)) is Meta


class Slots(Twice):
    __slots__ = ("extra",)


def test_a_class_with_slots() -> None:
    model = Slots()
    model.extra = 3
    assert len(check(model, inputs(), run=True).replaced) == 2
    assert model.extra == 3


class Odd(Twice):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "act_1":
            raise RuntimeError("odd")
        super().__setattr__(name, value)


@pytest.mark.parametrize("example", [None, inputs()], ids=["no_example", "example"])
def test_an_error_midway_leaves_the_model(example: Tensor | None) -> None:
    model, x = Odd(), inputs()
    before, expected, act = dict(vars(model)), model(x), model.act
    with pytest.raises(RuntimeError, match="odd"):
        replace_activations(model, granularity="layer", example_input=example)
    assert type(model) is Odd and model.act is act
    assert vars(model) == before and torch.equal(model(x), expected)


SOURCE = """\
import torch.nn.functional as F
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.act = nn.Linear(4, 4), nn.ReLU()
    def forward(self, x):
        return F.relu(self.act(self.act(self.lin(x)) - 0.1)){tail}
"""


@pytest.mark.parametrize(("tail", "is_read"), [(" * 2", False), (" + x", False), ("\n    def other(self): pass", True)])
def test_a_file_that_was_edited_after_its_import(tmp_path: Path, tail: str, is_read: bool) -> None:
    file = tmp_path / "edited_network.py"
    file.write_text(SOURCE.format(tail=""))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        file.write_text(SOURCE.format(tail=tail))
        os.utime(file, (2e9, 2e9))
        report = check(module.Net(), inputs(), run=True)
    finally:
        del sys.modules[file.stem]
    assert (len(report.replaced) == 3) is is_read
    assert is_read or "source has changed" in report.remaining[0].reason


def test_code_without_a_source() -> None:
    names: dict[str, Any] = {"__name__": "without_source"}
    exec(SOURCE.format(tail=""), names)
    report = check(names["Net"](), inputs(), run=True)
    assert [one.reason for one in report.remaining] == ["Net.forward: its source cannot be read"]


class LeavesSecond(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.lin(x)) * self.act(self.gain)


@pytest.mark.parametrize("run", [True, False], ids=["example", "no_example"])
def test_a_call_that_is_left_does_not_reach_the_d_relu_of_another(run: bool) -> None:
    report = check(LeavesSecond(), inputs(), run=run, granularity="layer")
    assert [site.action for site in report.sites] == ["replaced", "left"]


@pytest.mark.parametrize("name", ["act", "act_1"])
def test_a_call_that_is_not_selected_stays_plain(name: str) -> None:
    model = Twice()
    report = replace_activations(model, granularity="layer", select=name)
    assert list(d_relus(model)) == [name]
    with PlainReLUs() as relus:
        model(inputs())
    assert len(relus.lines) == len(report.remaining) == 1


def test_a_forward_that_is_called_by_itself_is_seen() -> None:
    class ByForward(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return self.act.forward(self.lin(x))

    report = check(ByForward(), inputs(), run=True)
    assert [site.shape for site in report.replaced] == [(3, 4)]
    assert not report.unreached


def test_threads_make_one_class() -> None:
    models, errors = [Twice() for _ in range(6)], []

    def operate(model: nn.Module) -> None:
        try:
            replace_activations(model, example_input=torch.ones(3, 4))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=operate, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(sum(isinstance(one, DReLU) for one in model.modules()) == 2 for model in models)


def test_a_second_surgery_does_what_the_first_left() -> None:
    class Mixed(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.act(self.lin(self.act(F.relu(x)))) + x)

    model, names = Mixed(), []
    for select in (lambda site: site.source == "F.relu", None, None):
        names.append([site.name for site in replace_activations(model, granularity="layer", select=select).replaced])
    assert names == [["relu", "relu_1"], ["act", "act_1"], []]
    with PlainReLUs() as relus:
        model(inputs())
    assert not relus.lines
