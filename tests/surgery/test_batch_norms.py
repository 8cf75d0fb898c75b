"""fuse="batch_norm": which batch norms get the caps of the activation behind them, and what they compute then."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dreluop import BatchNormDReLU2d
from tests.surgery.batch_norms import (
    Parts,
    assert_equal_in_training_and_eval,
    operated,
    with_forward,
)
from tests.surgery.helpers import d_relus, open_caps


class Forward(Parts):
    """Each a forward: what it computes of a batch norm and an activation."""

    def nested(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def in_statements(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.bn(x)
        x = self.act(x)
        return x * 2

    def other_names(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        n = self.bn(h)
        y = functional.relu6(n)
        return y + h

    def in_a_list(self, x: Tensor) -> Tensor:
        return self.norms[0](self.conv(x)).relu_()

    def sum_left(self, x: Tensor) -> Tensor:
        x = self.other(x)
        return torch.relu(self.bn(self.conv(x)) + x)

    def sum_right(self, x: Tensor) -> Tensor:
        x = self.other(x)
        return self.act(x + self.bn(self.conv(x)))

    def sum_of_two(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)) + self.norms[0](self.other(x)))

    def sum_broadcast(self, x: Tensor) -> Tensor:
        x = self.other(x)
        return self.act(self.bn(self.conv(x)) + x.mean((2, 3), keepdim=True))

    def sum_in_place(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        out = self.bn(out)
        if self.drop is not None:
            x = self.other(x)
        out += x
        out = self.act(out)
        return out

    def sum_of_a_call(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(x))
        out += self.other(x)
        return functional.relu(out)

    def sum_by_name(self, x: Tensor) -> Tensor:
        x = self.other(x)
        out = self.bn(self.conv(x))
        total = out + x
        return functional.relu(total)

    def sum_into_the_other(self, x: Tensor) -> Tensor:
        y = self.other(x)
        y += self.bn(self.conv(x))
        return functional.relu(y)

    def asked_for(self, x: Tensor) -> Tensor:
        if self.bn is not None and self.bn.track_running_stats and isinstance(self.bn, nn.BatchNorm2d):
            x = x + getattr(self.bn, "eps", 0)
        return self.act(self.bn(self.conv(x)))

    def read_twice(self, x: Tensor) -> Tensor:
        n = self.bn(self.conv(x))
        y = torch.relu(n)
        return y + n

    def read_in_the_sum_too(self, x: Tensor) -> Tensor:
        x = self.other(x)
        n = self.bn(self.conv(x))
        return torch.relu(n + x) * n

    def used_twice(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x))) + self.bn(x)

    def used_otherwise(self, x: Tensor) -> Tensor:
        also = self.bn
        return self.act(self.bn(self.conv(x))) + also.forward(x)

    def written_between(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        n = self.bn(x)
        x.mul_(2)
        return self.act(n) + x

    def written_by_another_name(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        h = self.drop(x)
        n = self.bn(h)
        x.mul_(2)
        return self.act(n) + x

    def written_by_the_other_operand(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.act(self.bn(x) + x.neg_())

    def left_between(self, x: Tensor) -> Tensor:
        n = self.bn(self.conv(x))
        if not self.flag:
            return x
        return self.act(n)

    def dropped_between(self, x: Tensor) -> Tensor:
        return self.act(self.drop(self.bn(self.conv(x))))

    def only_at_times(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.flag:
            x = self.bn(x)
        return self.act(x)

    def by_keyword(self, x: Tensor) -> Tensor:
        return self.act(self.bn(input=self.conv(x)))

    def no_batch_norm(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


FUSED = (
    "nested", "in_statements", "other_names", "in_a_list", "sum_left", "sum_right", "sum_of_two", "sum_broadcast",
    "sum_in_place", "sum_of_a_call", "sum_by_name", "sum_into_the_other", "asked_for",
)  # fmt: skip
APART = {
    "read_twice": "the output of its batch norm has another reader",
    "read_in_the_sum_too": "the output of its batch norm has another reader",
    "used_twice": "other code uses its batch norm",
    "used_otherwise": "other code uses its batch norm",
    "written_between": "other operations run between its batch norm and it",
    "written_by_another_name": "other operations run between its batch norm and it",
    "written_by_the_other_operand": "other operations run between its batch norm and it",
    "left_between": "other operations run between its batch norm and it",
    "dropped_between": "its batch norm is not called right before it",
    "only_at_times": "its batch norm is not called right before it",
    "by_keyword": "its batch norm is not called right before it",
    "no_batch_norm": "",
}


def test_every_kind_is_listed() -> None:
    assert [name for name in vars(Forward) if not name.startswith("_")] == [*FUSED, *APART]


@pytest.mark.parametrize("with_example", [False, True], ids=["", "example"])
@pytest.mark.parametrize("kind", [*FUSED, *APART])
def test_calls_in_code(kind: str, with_example: bool) -> None:
    original, x = with_forward(vars(Forward)[kind]), torch.randn(3, 4, 5, 5)
    model, report = operated(original, example_input=x if with_example else None)
    (site,) = (one for one in report.sites if one.module == "" and one.line)
    reason = APART.get(kind)
    if reason is None:
        assert (site.action, site.reason) == ("batch_norm", "")
        assert site.name == ("norms.0" if kind == "in_a_list" else "bn")
        assert isinstance(model.get_submodule(site.name), BatchNormDReLU2d)
        assert not d_relus_reached(model, x)
    else:
        assert site.action in ("replaced", "fused")
        assert site.reason == (f"kept apart: {reason}" if reason else "")
    open_caps(model, report)
    # Autograd refuses writes to what the batch norm has kept.
    assert_equal_in_training_and_eval(original, model, x, gradients="written" not in kind)
    state = original.state_dict()
    assert {key.rpartition(".")[2] for key in model.state_dict().keys() - state.keys()} == {"cap"}
    assert not state.keys() - model.state_dict().keys()


def d_relus_reached(model: nn.Module, x: Tensor) -> list[str]:
    found: list[str] = []
    model = copy.deepcopy(model)
    for name, module in d_relus(model).items():
        module.register_forward_hook(lambda *_, name=name: found.append(name))
    model(x)
    return found


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "options", [{"momentum": None}, {"track_running_stats": False}, {"affine": False}, {"momentum": 0.3}], ids=str
)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_options_of_batch_norms(dimensions: int, options: dict[str, Any], training: bool) -> None:
    kind = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 1]
    original = nn.Sequential(nn.Identity(), kind(4, **options), nn.ReLU()).train(training)
    model, report = operated(original)
    assert report.in_batch_norms
    assert model[1].training == training
    open_caps(model, report)
    for _ in range(2):
        assert_equal_in_training_and_eval(original, model, torch.randn(5, 4, *[3] * dimensions))
