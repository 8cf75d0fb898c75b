"""The paper's two changes: a dense layer with D-ReLU before the output, a convolution with D-ReLU at the input."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dreluop._internal import checks
from dreluop.modules import GRANULARITIES, DReLU, Granularity
from dreluop.surgery import finding, graphs, running
from dreluop.surgery.replacing import check_model

Layer = TypeVar("Layer", bound=nn.Module)


class HeadedLinear(nn.Linear):
    """A Linear with a dense layer and a D-ReLU before it: ``linear(activation(head(x)))``."""

    head: nn.Linear
    activation: DReLU

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.activation(self.head(input)))


class StemmedConv2d(nn.Conv2d):
    """A Conv2d with a convolution and a D-ReLU before it: ``conv(activation(stem(x)))``."""

    stem: nn.Conv2d
    activation: DReLU

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.activation(self.stem(input)))


def insert_head(
    model: nn.Module,
    width: int | None = None,
    granularity: Granularity = "neuron",
    init: float = 100.0,
    *,
    layer: str | None = None,
) -> HeadedLinear:
    """Put a dense layer with D-ReLU before the output layer (section 5 of the paper). Changes the model in place.

    The output layer stays where it is, with its weights and names (``fc.weight``); the new ones hang in it
    (``fc.head.weight``, ``fc.activation.cap``).

    Args:
        width: of the new dense layer; None: the output layer's in_features, so that its weights stay. Another width
            gives the output layer new weights.
        granularity: ``"neuron"``: one cap per unit, for an output layer that gets (N, features); ``"channel"``: the
            same, for inputs of any shape; ``"layer"``: one.
        init: of the caps.
        layer: the output layer's name; None finds the Linear that gives what the model returns in eval mode.

    Returns:
        The output layer with its ``head`` and ``activation``, whose parameters are new: an optimizer must get them.

    Raises:
        TypeError, ValueError: an argument is not as above, no output layer is found, or it is no plain ``nn.Linear``.
            The model is then as it was.
    """
    check_model(model)
    _check_caps(granularity, init)
    found = _named(model, layer) if layer is not None else finding.output_layer(model)
    output = _of_kind(nn.Linear, found, "output", model)
    init = checks.initial_cap(init, output.weight.dtype)
    features = output.in_features if width is None else checks.positive_int("width", width)
    _check_shape("width", output, features, output.in_features)
    options: dict[str, Any] = {"device": output.weight.device, "dtype": output.weight.dtype}
    head = nn.Linear(output.in_features, features, **options)
    caps = DReLU(1 if granularity == "layer" else features, init, -1 if granularity == "channel" else 1, **options)
    if features != output.in_features:
        output.in_features = features
        output.weight = nn.Parameter(torch.empty(output.out_features, features, **options))
        output.reset_parameters()
    headed: HeadedLinear = _become(output, HeadedLinear, head=head, activation=caps)
    return headed


def insert_stem(
    model: nn.Module,
    channels: int | None = None,
    kernel_size: int = 3,
    granularity: Granularity = "channel",
    init: float = 100.0,
    *,
    layer: str | None = None,
    example_input: Any = None,
) -> StemmedConv2d:
    """Put a convolution with D-ReLU before the first one (Figure 13 of the paper). Changes the model in place.

    It has stride 1 and keeps height and width. The first convolution stays where it is, with its weights and names
    (``conv1.weight``); the new ones hang in it (``conv1.stem.weight``, ``conv1.activation.cap``).

    Args:
        channels: of the new convolution; None: the first one's in_channels, so that its weights stay. Another number
            gives it new weights.
        kernel_size: odd.
        granularity: of the caps; ``"neuron"`` needs ``example_input``.
        init: of the caps.
        layer: the first convolution's name; None finds the first that runs.
        example_input: as in ``replace_activations``.

    Returns:
        The first convolution with its ``stem`` and ``activation``, whose parameters are new.

    Raises:
        TypeError, ValueError: an argument is not as above, or the first layer with weights is no plain ``nn.Conv2d``.
            The model is then as it was.
    """
    check_model(model)
    _check_caps(granularity, init)
    kernel_size = checks.positive_int("kernel_size", kernel_size)
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: got {kernel_size}; expected an odd number")
    found = _named(model, layer) if layer is not None else finding.first_layer(model)
    first = _of_kind(nn.Conv2d, found, "first", model)
    init = checks.initial_cap(init, first.weight.dtype)
    between = first.in_channels if channels is None else checks.positive_int("channels", channels)
    if between != first.in_channels and first.groups != 1:
        raise ValueError(
            f"channels: got {between}; the first convolution has groups and takes {first.in_channels} only"
        )
    _check_shape("channels", first, between, first.in_channels)
    options: dict[str, Any] = {"device": first.weight.device, "dtype": first.weight.dtype}
    caps: int | tuple[int, ...] = 1 if granularity == "layer" else between
    if granularity == "neuron":
        caps = (between, *_input_size(model, first, example_input))
    stem = nn.Conv2d(first.in_channels, between, kernel_size, padding=kernel_size // 2, **options)
    activation = DReLU(caps, init, **options)
    if between != first.in_channels:
        first.in_channels = between
        first.weight = nn.Parameter(torch.empty(first.out_channels, between, *first.kernel_size, **options))
        first.reset_parameters()
    stemmed: StemmedConv2d = _become(first, StemmedConv2d, stem=stem, activation=activation)
    return stemmed


def _become(layer: nn.Module, cls: Any, **children: nn.Module) -> Any:
    layer.__class__ = cls
    for name, child in children.items():
        child.train(layer.training)
        setattr(layer, name, child)
    return layer


def _check_caps(granularity: Any, init: Any) -> None:
    if granularity not in GRANULARITIES:
        raise ValueError(f'granularity: got {granularity!r}; expected "layer", "channel" or "neuron"')
    checks.initial_cap(init)


def _named(model: nn.Module, name: Any) -> nn.Module:
    if not isinstance(name, str):
        raise TypeError(f"layer: got {type(name).__name__}; expected the name of a module")
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"layer: the model has no module {name!r}") from error


def _of_kind(kind: type[Layer], layer: nn.Module, which: str, model: nn.Module) -> Layer:
    if type(layer) is kind and "forward" not in vars(layer):
        return layer
    got, cure = type(layer).__name__, "name another with layer="
    if isinstance(layer, HeadedLinear | StemmedConv2d):
        cure = "it has its new layer already"
    elif type(layer) is kind:
        got, cure = f"{got} whose forward is set on the instance", f"delete that, or {cure}"
    elif isinstance(layer, kind):
        got = f"{graphs.path_of_class(layer)}, a subclass of torch.nn.{kind.__name__}"
        path = next(name for name, module in model.named_modules() if module is layer)
        cure = f"put a torch.nn.{kind.__name__} with its weights at {path!r}, or {cure}"
    raise ValueError(f"layer: the {which} layer is a {got}; expected a torch.nn.{kind.__name__}: {cure}")


def _check_shape(argument: str, layer: nn.Module, new: int, old: int) -> None:
    if new != old and not {"weight", "bias"} <= layer._parameters.keys():
        raise ValueError(
            f"{argument}: got {new}; expected {old}, as a hook computes weights of the layer (weight_norm, "
            "spectral_norm, prune), whose shape must stay"
        )


def _input_size(model: nn.Module, first: nn.Module, example_input: Any) -> tuple[int, ...]:
    if example_input is None:
        raise ValueError("example_input: neuron caps need the size of the input; pass one")
    name = next(name for name, module in model.named_modules() if module is first)
    observed = running.observe(model, [name], running.as_arguments(example_input))
    if "eval" in observed.failed:
        raise ValueError(f"example_input: the model cannot run on it: {observed.failed['eval']}")
    seen = observed.seen(name)
    if not seen:
        raise ValueError("layer: the first convolution is not reached by a forward pass on example_input")
    return seen[0].shape[2:]
