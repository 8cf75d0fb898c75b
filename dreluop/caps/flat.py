"""All caps of a model in one parameter: one tensor for the optimizer, the penalty and the gradients' accumulation."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreluop._internal import cap_state
from dreluop.caps.statistics import capped_layers, is_compiled
from dreluop.modules import DReLU

NAME = "flat_caps"


def flatten(model: nn.Module) -> nn.Parameter:
    """Put the caps of all layers of a model into one parameter, ``model.flat_caps``, in place.

    Each layer's ``cap`` is a view of it from now on. A model of many layers takes its step with less host time: the
    optimizer, ``zero_grad`` and ``cap_penalty(model, balancer)`` meet one tensor instead of one a layer, and backward
    joins the caps' gradients once. Keys and values of ``state_dict`` stay as they were, those of an optimizer's do not.

    Call it before the optimizer, ``DistributedDataParallel`` and ``torch.compile``. The caps can then be frozen only
    together.

    Returns:
        The parameter, of shape ``(number of caps,)``.

    Raises:
        TypeError: model is no module.
        ValueError: model has no ``DReLU``, was flattened before, is compiled or wrapped for distributed training, or
            has a LazyDReLU without a shape; a cap is made of other parameters, has hooks, or differs from the first
            one in dtype, device or ``requires_grad``. Nothing is changed then.
    """
    layers: dict[str, Any] = capped_layers(model, (DReLU,), also=(cap_state.LearnedCap,))
    _check(model, layers)
    caps: dict[int, nn.Parameter] = {id(layer.cap): layer.cap for layer in layers.values()}
    flat = FlatCaps(model, list(caps.values()))
    values = _joined(list(caps.values()))
    places = {key: index for index, key in enumerate(caps)}
    for layer in set(layers.values()):
        place = Place(flat, places[id(layer.cap)])
        del layer._parameters["cap"]
        layer.__class__ = _flat_class(type(layer))  # type: ignore[arg-type]
        layer.__dict__["_place"] = place
    model.register_parameter(NAME, values)
    model.register_state_dict_post_hook(_leave_out)
    model.register_load_state_dict_pre_hook(_find_unchanged)
    return values


def _joined(caps: list[nn.Parameter]) -> nn.Parameter:
    values = nn.Parameter(torch.cat([cap.detach().flatten() for cap in caps]), caps[0].requires_grad)
    if any(cap.grad is not None for cap in caps):
        grads = [torch.zeros_like(cap) if cap.grad is None else cap.grad for cap in caps]
        values.grad = torch.cat([grad.flatten() for grad in grads])
    return values


def _check(model: nn.Module, layers: dict[str, Any]) -> None:
    if is_compiled(model) or isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ValueError(f"model: got a {type(model).__name__}; flatten the caps before it is compiled or wrapped")
    flat = [name for name, layer in layers.items() if cap_state.is_flat(layer)]
    if flat or hasattr(model, NAME):
        there = f", where the cap of {flat[0]!r} is" if flat else ""
        raise ValueError(f"model: got one with {NAME}{there}; caps are flattened once")
    first_name, first = next((name, layer.cap) for name, layer in layers.items())
    for name, layer in layers.items():
        cap = layer._parameters.get("cap")
        what = cap_state.of_layer("the cap", name)
        if type(cap) is not nn.Parameter:
            raise ValueError(f"model: {what} is made of other parameters, or a {type(cap).__name__}; expected its own")
        if cap._backward_hooks or cap._post_accumulate_grad_hooks:
            raise ValueError(f"model: {what} has hooks of its own, which no view of another parameter could call")
        for attribute in ("dtype", "device", "requires_grad"):
            got, expected = getattr(cap, attribute), getattr(first, attribute)
            if got != expected:
                raise ValueError(
                    f"model: {what} has {attribute} {got}; expected {expected}, as {first_name!r} has it, since all "
                    "caps become one parameter"
                )


def owners_of(layers: Iterable[Any]) -> set[nn.Module]:
    """The models that hold the parameters of these layers."""
    return {layer._place.flat.owner for layer in layers if cap_state.is_flat(layer)}


class FlatCaps:
    """The parameter of a model that holds all caps, and where each lies in it."""

    def __init__(self, owner: nn.Module, caps: list[Tensor]) -> None:
        self.owner = owner
        self.shapes = [cap.shape for cap in caps]
        self.sizes = [cap.numel() for cap in caps]
        self.starts = [sum(self.sizes[:index]) for index in range(len(caps))]
        self._views: list[Tensor] = []
        self._made_of: Tensor | None = None
        self._made_for: tuple[Any, ...] = ()

    @property
    def values(self) -> Tensor:
        """Asked of the model each time: torch.func.functional_call puts another there."""
        values: Tensor | None = self.owner._parameters.get(NAME)
        # Some wrappers make parameters into attributes.
        return getattr(self.owner, NAME) if values is None else values

    def view(self, index: int) -> Tensor:
        """The caps of one layer. All views of a step come from one split, whose backward joins their gradients."""
        values = self.values
        if torch.compiler.is_compiling():
            return self._shaped(values.split(self.sizes)[index], index)
        if type(values) is not nn.Parameter:
            # Of torch.func, say, where what was made inside of a transform must not be met outside.
            return self._shaped(values.narrow(0, self.starts[index], self.sizes[index]), index)
        # After a change in place, in other memory or in another mode, a view made before is of no use.
        made_for = (values._version, values.data_ptr(), values.requires_grad, torch.is_grad_enabled())
        if self._made_of is not values or self._made_for != made_for:
            self._views = [self._shaped(part, index) for index, part in enumerate(values.split(self.sizes))]
            self._made_of, self._made_for = values, made_for
        return self._views[index]

    def _shaped(self, part: Tensor, index: int) -> Tensor:
        return part if len(self.shapes[index]) == 1 else part.view(self.shapes[index])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_views": [], "_made_of": None, "_made_for": ()}


@dataclass(frozen=True, eq=False)
class Place:
    """Where a layer's caps lie."""

    flat: FlatCaps
    index: int

    @property
    def count(self) -> int:
        """How many caps lie there."""
        return len(self.flat.sizes)


# The layers have their own caps in a state_dict.
def _leave_out(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    state.pop(prefix + NAME, None)


def _find_unchanged(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if (values := model._parameters.get(NAME)) is not None:
        state[prefix + NAME] = values.detach()


class _FlatLayer(cap_state.LearnedCap):
    """What ``flatten`` adds to the class of a layer."""

    _place: Place
    _parameters: dict[str, Any]

    @property
    def cap(self) -> Tensor:  # type: ignore[override]
        return self._place.flat.view(self._place.index)

    @property
    def trained(self) -> Tensor:
        return self._place.flat.values

    @contextmanager
    def _own_cap(self) -> Iterator[None]:
        """The cap as a parameter for the time of the block, in the same memory; one that is put there is copied."""
        view = self.cap.detach()
        own = self._parameters["cap"] = nn.Parameter(view, self._place.flat.values.requires_grad)
        try:
            yield
        finally:
            given = self._parameters.pop("cap")
            if given is not own:
                with torch.no_grad():
                    view.copy_(given)

    def _save_to_state_dict(self, *args: Any) -> None:
        with self._own_cap():
            super()._save_to_state_dict(*args)  # type: ignore[misc]

    def _load_from_state_dict(self, *args: Any) -> None:
        with self._own_cap():
            super()._load_from_state_dict(*args)  # type: ignore[misc]

    def __reduce_ex__(self, _: Any) -> tuple[Any, ...]:
        return _empty, (type(self).__mro__[2],), self.__dict__


@functools.cache
def _flat_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Flat{kind.__name__}", (_FlatLayer, kind), {})


def _empty(kind: type[nn.Module]) -> nn.Module:
    """What a copy or a pickle is filled into."""
    made = _flat_class(kind)  # type: ignore[arg-type]
    return made.__new__(made)
