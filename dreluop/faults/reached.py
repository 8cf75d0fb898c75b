"""The activations that a forward pass calls, whether as modules, functions or methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = (
    "relu", "hardtanh", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
    "sigmoid", "tanh", "softplus", "threshold", "rrelu_with_noise", "_prelu_kernel", "log_sigmoid_forward",
)  # fmt: skip
OURS = ("capped_relu", "capped_relu_with_aux")
# Called with a lower bound of 0 it is a ReLU.
BOUNDS = ("clamp", "clamp_min")
# What holds an activation that nobody outside sees.
HIDING = ("_transformer_encoder_layer_fwd",)


class ActivationCalls(TorchDispatchMode):
    """While it is active and a model runs, calls ``on_input`` or ``on_output`` for each activation.

    ``on_input(x, in_place)`` returns what the activation gets; if ``in_place``, it may change x itself.
    ``on_output(y)`` changes y, which is fresh or written over.

    Attributes:
        calls: activations that were reached.
    """

    def __init__(
        self,
        on_input: Callable[[Tensor, bool], Tensor] | None = None,
        on_output: Callable[[Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        self.on_input, self.on_output = on_input, on_output
        self.calls = self._depth = self._calls_before = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._depth == 0 or not _is_activation(func, args, kwargs):
            return func(*args, **kwargs)
        self.calls += 1
        # Not of those that write to `out`.
        alias = func._schema.arguments[0].alias_info
        in_place = alias is not None and alias.is_write
        if self.on_input is not None:
            args = (self.on_input(args[0], in_place), *args[1:])
        result = func(*args, **kwargs)
        if self.on_output is not None:
            # The operators of this library that work in place do not return x.
            first = result[0] if isinstance(result, (tuple, list)) else result
            self.on_output(args[0] if in_place else first)
        return result

    def start_pass(self, model: nn.Module, args: Any) -> None:
        if self._depth == 0:
            self._calls_before = self.calls
        self._depth += 1

    def end_pass(self, model: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1
        if output is not None and self._depth == 0 and self.calls == self._calls_before:
            raise ValueError(
                f"model: a {type(model).__name__} called no activation that is known ({', '.join(NAMES)}, capped_relu)"
            )


def _is_activation(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    namespace, _, name = func._schema.name.partition("::")
    if name in HIDING:
        raise ValueError(
            "model: a TransformerEncoderLayer takes torch's fast path, which hides its activation; "
            "call torch.backends.mha.set_fastpath_enabled(False) before"
        )
    base = name.removesuffix("_")
    if namespace == "dreluop":
        return base in OURS
    if namespace != "aten":
        return False
    if base in BOUNDS:
        lower = args[1] if len(args) > 1 else kwargs.get("min")
        return isinstance(lower, (int, float)) and lower == 0
    return base in NAMES
