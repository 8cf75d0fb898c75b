"""fuse="batch_norm": which batch norms get the caps of the activation behind them, and what they compute then."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from dreluop import BatchNormDReLU2d, DReLU
from dreluop.surgery import Report, freeze_caps, load_float_state_dict, replace_activations, to_torch
from tests.surgery.helpers import d_relus, open_caps


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flag = True
        self.conv, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn, self.act = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4)])
        self.drop = nn.Identity()


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


def with_forward(kind: str) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = type("Made", (Parts,), {"forward": vars(Forward)[kind], "__module__": __name__})()
    if "act" not in type(made).forward.__code__.co_names:
        del made.act
    return made


def operated(original: nn.Module, **options: Any) -> tuple[nn.Module, Report]:
    model = copy.deepcopy(original)
    return model, replace_activations(model, fuse="batch_norm", **options)


def assert_equal_in_training_and_eval(original: nn.Module, model: nn.Module, x: Tensor, gradients: bool = True) -> None:
    """Outputs, gradients and running statistics, in fp64."""
    original, model = copy.deepcopy(original).double(), copy.deepcopy(model).double()
    for training in (True, False):
        results = []
        for one in (original.train(training), model.train(training)):
            given = x.double().clone().requires_grad_()
            with torch.set_grad_enabled(gradients):
                y = one(given)
            results.append([y, *(torch.autograd.grad(y.square().sum(), given, retain_graph=True) if gradients else ())])
            if gradients:
                y.square().sum().backward()
        weights = dict(model.named_parameters())
        results[0] += [value.grad for value in original.parameters() if value.grad is not None]
        results[1] += [weights[name].grad for name, value in original.named_parameters() if value.grad is not None]
        results[0] += list(original.buffers())
        results[1] += list(model.buffers())
        for got, want in zip(*results[::-1], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("with_example", [False, True], ids=["", "example"])
@pytest.mark.parametrize("kind", [*FUSED, *APART])
def test_calls_in_code(kind: str, with_example: bool) -> None:
    original, x = with_forward(kind), torch.randn(3, 4, 5, 5)
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


def block(norm: nn.Module | None = None, activation: nn.Module | None = None) -> nn.Module:
    """A convolution, a batch norm and an activation, in code."""
    made = with_forward("nested")
    made.bn, made.act = norm or made.bn, activation or made.act
    return made


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class MyNorm(nn.BatchNorm2d):
    pass


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


def parametrized() -> nn.Module:
    return parametrize.register_parametrization(nn.BatchNorm2d(4), "weight", Doubled())


def with_own_forward() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    norm.forward = norm.forward
    return norm


def held_twice() -> nn.Module:
    model = block()
    model.all = [model.bn]
    return model


MODULES = {
    "SyncBatchNorm": (lambda: block(nn.SyncBatchNorm(4)), "its batch norm is a SyncBatchNorm; expected just"),
    "subclass": (lambda: block(MyNorm(4)), "its batch norm is a MyNorm; expected just"),
    "parametrized": (lambda: block(parametrized()), "its batch norm is a ParametrizedBatchNorm2d; expected just"),
    "forward": (lambda: block(with_own_forward()), "the forward of its batch norm is set on the instance"),
    "hooks": (lambda: block(hooked(nn.BatchNorm2d(4))), "its batch norm has hooks"),
    "hooks after": (lambda: block(activation=hooked(nn.ReLU())), "the activation has hooks"),
    "held twice": (held_twice, "its batch norm is held in more than one place"),
}


@pytest.mark.parametrize("kind", MODULES)
def test_modules_that_are_kept_apart(kind: str) -> None:
    make, reason = MODULES[kind]
    original = make()
    x = torch.randn(3, 4, 5, 5)
    model, report = operated(original, example_input=x if kind == "forward" else None)
    (site,) = report.sites
    assert site.action == "replaced"
    assert site.reason.startswith(f"kept apart: {reason}")
    assert type(model.bn) is type(original.bn)
    open_caps(model, report)
    assert torch.equal(model.eval()(x), original.eval()(x))


def test_caps_that_a_batch_norm_cannot_have() -> None:
    x = torch.randn(3, 4, 5, 5)
    for options in ({"granularity": "neuron"}, {"dim": 2}):
        _, report = operated(block(), example_input=x, **options)
        assert report.sites[0].reason == (
            "kept apart: its caps are not one for all or one per channel of the batch norm"
        )
    model, report = operated(block(), granularity="layer")
    assert report.in_batch_norms
    assert model.bn.cap.shape == (1,)


def arguments_of_a_function(self: Any, x: Tensor) -> Tensor:
    return self.function(self.bn(self.conv(x)), 0.0, 0.5)


def test_arguments_that_a_function_in_an_attribute_gets() -> None:
    made = type("Made", (Parts,), {"forward": arguments_of_a_function, "__module__": __name__})()
    del made.act
    made.function = functional.hardtanh
    _, report = operated(made)
    reason = "kept apart: the call of the activation has other arguments, which may change"
    assert [site.reason for site in report.sites] == [reason]


class TwoMethods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def features(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


def test_calls_that_share_a_d_relu() -> None:
    model, report = operated(TwoMethods())
    assert "kept apart: another call has its D-ReLU too" in [site.reason for site in report.sites]
    assert isinstance(model.act, DReLU)


# In a Sequential.


def layers(channels: int = 4) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU6(inplace=True)]


class Holder(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if self.body is not None else x


class Iterates(Holder):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body:
            x = layer(x)
        return x


class Indexes(Holder):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.body[1](x)


class Reversed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for layer in reversed(self):
            x = layer(x)
        return x


class Unpacks(Holder):
    def forward(self, x: Tensor) -> Tensor:
        first, *_ = self.body
        return first(x) + self.body(x)


NOT_WHOLE = "kept apart: their Sequential is not seen to be called only as a whole"
SEQUENTIALS = {
    "root": (lambda: nn.Sequential(*layers(), *layers()), 2, ""),
    "nested": (lambda: Holder(nn.Sequential(nn.Sequential(*layers()), nn.Sequential(*layers()))), 2, ""),
    "parallel": (lambda: nn.DataParallel(nn.Sequential(*layers())), 1, ""),
    "iterated": (lambda: Iterates(nn.Sequential(*layers())), 0, NOT_WHOLE),
    "indexed": (lambda: Indexes(nn.Sequential(*layers())), 0, NOT_WHOLE),
    "unpacked": (lambda: Unpacks(nn.Sequential(*layers())), 0, NOT_WHOLE),
    "iterated outside": (lambda: Iterates(nn.Sequential(nn.Sequential(*layers()))), 1, ""),
    "own forward": (lambda: Reversed(*layers()[::-1]), 0, ""),
    "list": (lambda: Iterates(nn.ModuleList(layers())), 0, ""),
    "pool between": (
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.MaxPool2d(1), nn.ReLU()),
        0,
        "kept apart: its batch norm is not called right before it",
    ),
}


@pytest.mark.parametrize("kind", SEQUENTIALS)
def test_sequentials(kind: str) -> None:
    make, fused, reason = SEQUENTIALS[kind]
    original, x = make(), torch.randn(3, 4, 5, 5)
    model, report = operated(original, example_input=x)
    assert len(report.in_batch_norms) == fused
    assert {site.reason for site in report.sites} == {reason}
    open_caps(model, report)
    assert_equal_in_training_and_eval(original, model, x)
    kept = {key for key in model.state_dict() if not key.endswith(".cap")}
    assert kept == set(original.state_dict())


def test_a_sequential_that_no_code_is_seen_to_call() -> None:
    class Hidden(Holder):
        def forward(self, x: Tensor) -> Tensor:
            (name,) = self._modules
            return self.get_submodule(name)(x)  # type: ignore[no-any-return]

    _, report = operated(Hidden(nn.Sequential(*layers())))
    assert report.sites[0].reason == NOT_WHOLE


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


# What comes afterwards.


class Users(nn.Module):
    """In code and in a Sequential, with a sum, a fixed bound, and an activation that is left."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*layers())
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        out = self.relu(out)
        return self.last(self.relu(out.mean((2, 3)) - 0.1))


def users(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return operated(Users(), example_input=torch.randn(2, 4, 5, 5), **options)[0]


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
