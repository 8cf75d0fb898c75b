"""Where the outputs of a model's layers go in a forward pass: which modules compute with them."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# A value out of range stays one value in them (of a maximum pool, one window's).
ELEMENTWISE = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.AlphaDropout, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.Flatten, nn.Unflatten, nn.PixelShuffle,
)  # fmt: skip
FUNCTIONS = frozenset(
    {"relu", "relu_", "relu6", "gelu", "silu", "mish", "hardswish", "hardtanh", "leaky_relu", "elu", "selu", "softplus"}
    | {"sigmoid", "sigmoid_", "tanh", "tanh_", "hardsigmoid", "softmax", "log_softmax"}
)


class Flow(TorchFunctionMode):
    """While it watches, records which modules compute with the outputs of layers that have parameters.

    Args:
        model: run in ``watching``.
        activations: classes of modules in which an output may end.
        on_input: called with every module before it runs, its arguments and its keywords.
        on_output: called with every module that ran, and its output.

    Attributes:
        called: (module, function) of activations that are called as functions, outside of such modules.
    """

    def __init__(
        self,
        model: nn.Module,
        activations: tuple[type[nn.Module], ...],
        on_input: Callable[[nn.Module, Any, Any], None],
        on_output: Callable[[nn.Module, Any], None],
    ) -> None:
        super().__init__()
        self.model, self.activations = model, activations
        self._on_input, self._on_output = on_input, on_output
        # False while those look, whose functions are none of the model's.
        self._sees = True
        self.names = {module: name for name, module in model.named_modules()}
        self.called: dict[tuple[str, str], None] = {}
        self._running: list[nn.Module] = []
        self._made: dict[int, tuple[weakref.ref[Tensor], nn.Module]] = {}
        self._users: dict[nn.Module, set[nn.Module]] = {}
        self._outputs: set[nn.Module] = set()
        self._loose_output = False

    def layers(self) -> list[nn.Module]:
        """Those with parameters of their own that ran, and are no activations."""
        return [m for m in self._users if _has_parameters(m) and not isinstance(m, self.activations)]

    def ends_in_activations(self, layer: nn.Module) -> bool:
        """Whether nothing computes with a layer's output but activations, past elementwise modules."""
        users = self._users.get(layer, set())
        return bool(users) and layer not in self._outputs and all(map(self._is_end, users))

    def is_output(self, layer: nn.Module) -> bool:
        """Whether the model's own output is this layer's."""
        return layer in self._outputs

    @property
    def has_loose_output(self) -> bool:
        """Whether the model's output is that of no layer or activation."""
        return self._loose_output

    def _is_end(self, user: nn.Module) -> bool:
        if isinstance(user, self.activations):
            return True
        # One with parameters is a layer itself, which gets a guard if need be.
        return isinstance(user, ELEMENTWISE) and (_has_parameters(user) or self.ends_in_activations(user))

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = []
        try:
            for module in self.model.modules():
                handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave))
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # A shape or a dtype that is read is no use of the values.
        if self._sees and self._running and any(True for _ in tensors_in(result)):
            user = self._running[-1]
            for t in tensors_in((args, kwargs or {})):
                self._use(t, user)
            name = getattr(func, "__name__", "")
            if name in FUNCTIONS and not isinstance(user, self.activations):
                self.called[self.names[user], name] = None
        return result

    def _use(self, t: Tensor, user: nn.Module) -> None:
        maker = self._maker_of(t)
        if maker is not None and maker is not user:
            self._users[maker].add(user)

    def _maker_of(self, t: Tensor) -> nn.Module | None:
        found = self._made.get(id(t))
        return found[1] if found is not None and found[0]() is t else None

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._running:
            self._made.clear()
        self._running.append(module)
        self._sees = False
        self._on_input(module, args, kwargs)
        self._sees = True

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._sees = False
        self._on_output(module, output)
        self._sees = True
        self._running.pop()
        if _has_parameters(module) or isinstance(module, (*self.activations, *ELEMENTWISE)):
            self._note_made_by(module, output)
        if not self._running:
            makers = [self._maker_of(t) for t in tensors_in(output)]
            self._loose_output |= None in makers
            self._outputs |= {maker for maker in makers if maker is not None}

    def _note_made_by(self, module: nn.Module, output: Any) -> None:
        for t in tensors_in(output):
            maker = self._maker_of(t)
            # An activation in place writes over what it got: from then on it is the activation's.
            if maker is None or isinstance(module, self.activations):
                self._made[id(t)] = (weakref.ref(t), module)
                self._users.setdefault(module, set())
            elif isinstance(module, ELEMENTWISE):
                # It gave back what it got.
                self._users[maker].discard(module)


def _has_parameters(module: nn.Module) -> bool:
    return any(parameter is not None for parameter in module._parameters.values())


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from tensors_in(one)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in(tuple(getattr(value, part.name) for part in dataclasses.fields(value)))
