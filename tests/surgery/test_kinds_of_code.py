"""Statements and expressions in which an activation was once missed, broken or given wrong caps."""

from __future__ import annotations

import copy
import enum
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as users write it)
from torch import Tensor, nn

from dreluop.surgery import replace_activations
from tests.surgery.counting import check, verified
from tests.surgery.helpers import d_relus
from tests.surgery.kinds import Block, Made, Unknown, done, inputs

# 4: (batch, tokens, features) behind an unknown layer.


def test_channels_are_never_guessed() -> None:
    model = nn.Sequential(Unknown(), nn.ReLU(), nn.ReLU6())
    x = torch.randn(2, 3, 4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^dim: .*'1'.*'2'.*dim=-1"):
        replace_activations(model, example_input=x)
    assert not d_relus(model)
    assert model.state_dict().keys() == before.keys()
    replace_activations(model, example_input=x, dim=lambda site: -1 if site.name == "1" else 1)
    assert [one.num_parameters for one in d_relus(model).values()] == [6, 3]


@pytest.mark.parametrize(("dim", "channels"), [(-1, 6), (1, 3), (2, 6)])
def test_a_dim_for_all(dim: int, channels: int) -> None:
    model = nn.Sequential(Unknown(), nn.ReLU())
    replace_activations(model, example_input=torch.randn(2, 3, 4), dim=dim)
    assert model[1].num_parameters == channels


# 5: optional arguments.


class Labeled(Block):
    def forward(self, x: Tensor, labels: Tensor | None = None, *, scale: float = 1.0) -> dict[str, Tensor]:
        y = self.act(self.lin(x)) * scale
        if labels is None:
            return {"y": y}
        hidden = F.relu(self.lin2(y))
        return {"y": y, "loss": F.cross_entropy(hidden, labels)}


def test_optional_arguments(run: bool) -> None:
    x, labels = inputs(), torch.tensor([0, 1, 2])
    model = Labeled()
    report = done(model, {"x": x, "labels": labels, "scale": 2.0}, run)
    assert len(report.replaced) == 2 and not report.unreached
    assert set(model(x, labels)) == {"y", "loss"}


def test_a_relu_that_only_an_optional_argument_reaches() -> None:
    model, x = Labeled(), inputs()
    report = replace_activations(model, example_input=x, granularity="layer")
    assert [site.source for site in report.unreached] == ["F.relu"]
    verified(report, model, {"x": x, "labels": torch.tensor([0, 1, 2])})
    assert not report.unreached and not report.remaining


# 6, 7, 8, 14: what else stands in a forward.


class Kind(enum.Enum):
    A = "a"


class Constants(Block):
    kind, dtype, device = Kind.A, torch.float32, torch.device("cpu")

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.lin(x)) * np.sqrt(2) + np.float32(3) + np.int64(1)
        y = y.to(self.device, self.dtype) + torch.eye(4, dtype=self.dtype)[:3] + torch.arange(x.size(1))
        return torch.relu(self.lin2(y)) if self.kind is Kind.A else y


@dataclass
class Output:
    y: Tensor
    more: Any = None


class Questions(Block):
    log = logging.getLogger(__name__)
    scale = 2

    def forward(self, x: Tensor) -> Output:
        assert x.shape[-1] == 4, f"got {x.shape}"
        if x.dim() == 3 or len(x) > 100 or x.dtype == torch.float64:
            x = x[0]
        self.log.debug("shape %s", x.shape)
        y = nn.ReLU(inplace=True)(self.lin(x))
        y = F.avg_pool2d(y[None, None], (1, x.size(1) // 4))[0, 0]
        act = nn.ReLU6()
        return Output(y=act(self.lin2(torch.cat([y, x], 1)[:, : self.scale * 2])))


class Sliced(Block):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(self.lin, nn.ReLU(), self.lin2, nn.ReLU())
        del self.act

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[2:](self.layers[:2](x))
        for layer in self.layers[-2:]:
            x = layer(x)
        return x


class Calls(Block):
    """The input under its own name, packed, by position of another name."""

    def forward(self, x: Tensor, *args: Tensor, **kwargs: Any) -> Tensor:
        x = self.act(input=self.lin(x))
        x = self.act(*[self.lin2(x)])
        x = self.act(**{"input": x - 0.1})
        return F.relu(input=x - 0.2, inplace=False)


class Statements(Block):
    def parts(self, x: Tensor) -> Any:
        yield F.relu(self.lin(x))
        yield from [torch.relu(part) for part in (x, self.lin2(x))]

    def forward(self, x: Tensor) -> Tensor:
        count = 0

        def counted(value: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return F.relu(value)

        if (y := counted(self.lin(x))).dim() == 2:
            x = y * count
        match x.dim():
            case 2:
                x = torch.relu(self.lin2(x))
            case other:
                raise ValueError(other)
        return sum(self.parts(x), torch.zeros(()))


class Asks(Block):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.lin, nn.ReLU(), self.lin2, nn.ReLU6(), nn.Hardtanh(0, 2)])
        del self.act

    def scale(self, layer: nn.Module) -> int:
        if type(layer) is nn.ReLU:
            return 2
        return 3 if isinstance(layer, nn.ReLU6) else 5 if isinstance(layer, nn.Hardtanh | nn.Linear) else 7

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for layer in self.layers:
            x = layer(x)
            out = out + x * self.scale(layer)
        return out


class NamesItself(Block):
    factor = 2

    def forward(self, x: Tensor) -> Tensor:
        return self.act(NamesItself.factor * self.lin2(self.act(self.lin(x))))


@pytest.mark.parametrize(
    ("make", "sites"),
    [
        (Constants, 2), (Questions, 2), (Sliced, 2), (Calls, 4), (Statements, 4), (Asks, 3), (NamesItself, 2),
    ],
)  # fmt: skip
def test_what_stands_in_a_forward(make: Made, sites: int, run: bool) -> None:
    report = done(make(), inputs(), run)
    assert len(report.replaced) - len(report.unreached) == sites, str(report)


def test_after_a_compilation(fresh_compiler: None, capfd: pytest.CaptureFixture[str]) -> None:
    torch.compile(nn.Linear(2, 2), backend="eager")(torch.ones(1, 2))
    capfd.readouterr()
    assert len(done(Sliced(), inputs(), run=True).replaced) == 2
    assert capfd.readouterr() == ("", "")


# 9: one site that cannot be done.


class TwoWidths(Block):
    def __init__(self) -> None:
        super().__init__()
        self.widths = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 8)])

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.lin(x))
        return [self.act(layer(x)) for layer in self.widths]


def test_a_site_of_two_widths_is_left() -> None:
    report = check(TwoWidths(), inputs(), run=True)
    assert [site.source for site in report.replaced] == ["F.relu"]
    (remaining,) = report.remaining
    assert remaining.what == "module act" and "(3, 8)" in remaining.reason
