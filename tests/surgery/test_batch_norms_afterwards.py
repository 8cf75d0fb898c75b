"""What surgery by fuse="batch_norm" reports, what can be done with the network then, and to_torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dreluop import BatchNormDReLU2d
from dreluop.surgery import freeze_caps, load_float_state_dict, replace_activations, to_torch
from tests.surgery.batch_norms import (
    Doubled,
    Users,
    assert_equal_in_training_and_eval,
    operated,
    users,
)


def test_the_report_names_the_batch_norms() -> None:
    torch.manual_seed(0)
    model, report = operated(Users(), example_input=torch.randn(2, 4, 5, 5), init=0.5)
    assert [(site.name, site.action, site.cap_shape) for site in report.sites] == [
        ("bn1", "batch_norm", (4,)), ("bn2", "batch_norm", (4,)), ("relu_2", "replaced", (4,)),
        ("stem.1", "batch_norm", (4,)),
    ]  # fmt: skip
    assert "4 of 4 sites replaced, 0 of them fused with a sum, 3 with a batch norm" in str(report)
    assert model.stem[1].cap.tolist() == [6.0] * 4
    assert model.bn1.cap.tolist() == [0.5] * 4
    report.verify(model, torch.randn(2, 4, 5, 5))
    assert not report.remaining
    assert not report.unreached
    assert list(model.bn2.state_dict()) == [
        "weight", "bias", "cap", "running_mean", "running_var", "num_batches_tracked",
    ]  # fmt: skip


def test_a_second_surgery_finds_what_the_first_left() -> None:
    model, report = operated(Users(), select="relu", example_input=torch.randn(2, 4, 5, 5))
    assert [site.name for site in report.replaced] == ["bn1"]
    again = replace_activations(model, fuse="batch_norm", example_input=torch.randn(2, 4, 5, 5))
    assert [(site.name, site.action) for site in again.sites] == [
        ("bn2", "batch_norm"), ("relu_1", "replaced"), ("stem.1", "batch_norm"),
    ]  # fmt: skip
    assert not replace_activations(model, fuse="batch_norm").sites
    assert isinstance(model.relu, nn.ReLU)


def test_what_the_user_sets_afterwards_is_called() -> None:
    model, x = users(init=0.5), torch.randn(2, 4, 5, 5)
    model.eval()
    plain = Users().eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    model.bn1 = plain.bn1 = nn.GroupNorm(2, 4)
    for name, norm in (("bn2", model.bn2), ("1", model.stem[1])):
        assert norm.cap.min() > 0, name
        nn.init.constant_(norm.cap, torch.inf)
    nn.init.constant_(model.relu_2.cap, torch.inf)
    torch.testing.assert_close(model(x), plain(x))
    model.relu = plain.relu = nn.GELU()
    torch.testing.assert_close(model(x), plain(x))


def test_a_refusal_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Users()
    before, text = list(model.state_dict()), repr(model)

    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dreluop.surgery.replacing._change_methods", fails)
    with pytest.raises(KeyboardInterrupt):
        replace_activations(model, fuse="batch_norm", granularity="layer")
    assert (list(model.state_dict()), repr(model)) == (before, text)
    assert type(model.bn1) is nn.BatchNorm2d
    assert vars(model.bn1).keys() == vars(nn.BatchNorm2d(4)).keys()


def test_fuse_is_checked() -> None:
    with pytest.raises(ValueError, match="fuse: got 'all'; expected True, False or \"batch_norm\""):
        replace_activations(Users(), fuse="all")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="fuse: got int"):
        replace_activations(Users(), fuse=2)  # type: ignore[arg-type]


def test_a_checkpoint_of_the_plain_network_loads() -> None:
    plain, model = Users(), users()
    loaded = load_float_state_dict(model, plain.state_dict())
    assert loaded.caps == ("stem.1.cap", "bn1.cap", "bn2.cap", "relu_2.cap")
    assert torch.equal(model.bn2.weight, plain.bn2.weight)


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_to_torch_splits_them_again(granularity: Any, frozen: bool) -> None:
    fused, apart, x = users(granularity=granularity, init=0.5), Users(), torch.randn(2, 4, 5, 5)
    replace_activations(apart, granularity=granularity, init=0.5, example_input=x)
    freeze_caps(fused, frozen), freeze_caps(apart, frozen)
    plain = to_torch(fused)
    assert plain.state_dict().keys() == to_torch(apart).state_dict().keys()
    assert type(plain.bn2) is type(plain.stem[1]) is nn.BatchNorm2d
    assert not [module for module in plain.modules() if "dreluop" in type(module).__module__]
    assert_equal_in_training_and_eval(fused, plain, x, gradients=False)


class Untraceable(nn.Module):
    """As in DenseNet: torch.fx cannot trace it, but it calls each activation once, right around its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: Any) -> Tensor:
        if isinstance(x, Tensor):
            x = [x]
        return self.conv(self.act(self.bn(torch.cat(x, 1))))  # type: ignore[no-any-return]


class CallsItAgain(Untraceable):
    def forward(self, x: Any) -> Tensor:
        if isinstance(x, Tensor):
            x = [x]
        y = self.act(self.bn(torch.cat(x, 1)))
        return self.act(self.conv(y))  # type: ignore[no-any-return]


def test_to_torch_gives_the_author_back_the_code_that_only_calls_batch_norms() -> None:
    model, _ = operated(nn.Sequential(Untraceable()), init=0.5)
    x = torch.randn(2, 4, 5, 5)
    plain = to_torch(model)
    assert type(plain[0]) is Untraceable
    assert plain[0].act.cap.tolist() == [0.5] * 4
    assert_equal_in_training_and_eval(model, plain, x, gradients=False)
    model, report = operated(CallsItAgain(), select="act")
    assert report.in_batch_norms
    with pytest.raises(ValueError, match="cannot become a torch"):
        to_torch(model)


def test_to_torch_of_an_activation_that_others_call_too() -> None:
    model, _ = operated(Users(), select="relu", example_input=torch.randn(2, 4, 5, 5), init=0.1)
    x = torch.randn(2, 4, 5, 5)
    assert_equal_in_training_and_eval(model, to_torch(model), x, gradients=False)


def test_to_torch_of_batch_norms_that_surgery_did_not_make() -> None:
    norm = BatchNormDReLU2d(4, init=0.5)
    parametrize.register_parametrization(norm, "cap", Doubled())
    model, x = nn.Sequential(nn.Conv2d(4, 4, 1), norm), torch.randn(2, 4, 5, 5)
    plain = to_torch(model)
    assert type(plain[1].norm) is nn.BatchNorm2d
    assert_equal_in_training_and_eval(model, plain, x, gradients=False)
    residual = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(plain.eval()[1](x, residual), model.eval()[1](x, residual))
