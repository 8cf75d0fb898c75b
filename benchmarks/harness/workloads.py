"""What is timed: an activation on random data, forward and backward, many times over on rotated buffers; the floors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import implementations as c
from benchmarks.harness.machine import DTYPES
from benchmarks.harness.memory import Saved, saved_for_backward


@dataclass(frozen=True)
class Case:
    """One input and the implementations that run on it.

    Attributes:
        name: what tables call the input, without its dtype.
        granularity: "layer", "channel" or "neuron".
        shape: of x; the channels are dimension 1.
        dtype: of x, the cap and the gradient of y.
        implementations: names from ``implementations.IMPLEMENTATIONS``.
        channels_last: the memory format of x and of the gradient of y.
        in_place: whether the in-place forms are timed as well.
        threads: of the CPU; None for those that torch uses.
        bias_and_residual: which of "bias" and "residual" are added to x first.
    """

    name: str
    granularity: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    implementations: tuple[str, ...]
    channels_last: bool = False
    in_place: bool = False
    threads: int | None = None
    bias_and_residual: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.name}, {DTYPES[self.dtype_name]}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def x_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def cap_shape(self) -> tuple[int, ...]:
        shapes = {"layer": (1,), "channel": self.shape[1:2], "neuron": self.shape[1:]}
        if self.granularity not in shapes:
            raise ValueError(f'granularity: got {self.granularity!r}; expected "layer", "channel" or "neuron"')
        return shapes[self.granularity]


@dataclass(frozen=True)
class Data:
    x: Tensor
    cap: Tensor
    grad: Tensor


def make_data(case: Case, seed: int = 0, device: torch.device | str = "cpu") -> Data:
    """Standard normal x and gradient, caps uniform in [0.5, 1.5): about half the elements are off, a sixth capped."""
    generator = torch.Generator(device).manual_seed(seed)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    x, grad = (
        torch.randn(case.shape, generator=generator, dtype=case.dtype, device=device).contiguous(memory_format=layout)
        for _ in range(2)
    )
    cap = torch.rand(case.cap_shape, generator=generator, dtype=case.dtype, device=device) + 0.5
    return Data(x, cap, grad)


def make_bias_and_residual(case: Case, device: torch.device) -> dict[str, Tensor]:
    """By name; the bias needs a gradient."""
    generator = torch.Generator(device).manual_seed(7)
    more = {}
    if "bias" in case.bias_and_residual:
        shape = case.cap_shape if case.granularity == "neuron" else case.shape[1:2]
        bias = torch.randn(shape, generator=generator, dtype=case.dtype, device=device)
        more["bias"] = bias.requires_grad_()
    if "residual" in case.bias_and_residual:
        # Its gradient is x's, the same tensor: asking for it too would only make eager copy.
        more["residual"] = make_data(case, 1000, device).x
    return more


class Work:
    """So many calls, each on the next buffer, and then so many backward passes.

    ``forwards`` and ``backwards`` hand their results on. ``forward`` and ``backward`` keep them until ``clear``, for
    CUDA graphs, which own the memory of what was computed while they were captured. Either way every call writes memory
    of its own.
    """

    def __init__(self, data: Sequence[Data], calls: int) -> None:
        self._data, self._calls = data, calls
        self._outputs: Any = None
        self._gradients: Any = None

    def one_forward(self, index: int = 0) -> Any:
        raise NotImplementedError

    def one_backward(self, y: Any, index: int = 0) -> Any:
        raise NotImplementedError

    def first_forward(self, _: object) -> Any:
        return self.one_forward()

    def forwards(self, _: object = None) -> list[Any]:
        return [self.one_forward(index % len(self._data)) for index in range(self._calls)]

    def backwards(self, outputs: Sequence[Any]) -> list[Any]:
        return [self.one_backward(y, index % len(self._data)) for index, y in enumerate(outputs)]

    def forward(self) -> None:
        self._outputs = None
        self._outputs = self.forwards()

    def backward(self) -> None:
        self._gradients = None
        self._gradients = self.backwards(self._outputs)

    def clear(self) -> None:
        self._outputs = self._gradients = None


class Repeated(Work):
    """Of an activation."""

    def __init__(
        self,
        implementation: c.Implementation,
        data: Sequence[Data],
        calls: int,
        bias_and_residual: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Get ready; torch.compile compiles at the first call.

        Args:
            implementation: what to call.
            data: the buffers; the cap is that of the first.
            calls: in one ``forward``.
            bias_and_residual: bias and residual by name; those that need a gradient get one.
        """
        super().__init__(data, calls)
        self._activation = implementation.ready()
        self._implementation = implementation
        self._more = dict(bias_and_residual or {})
        self._xs = [d.x.detach().requires_grad_() for d in data]
        self._cap = data[0].cap.detach().requires_grad_()
        others = [tensor for tensor in self._more.values() if tensor.requires_grad]
        self._inputs = [(*implementation.inputs(x, self._cap), *others) for x in self._xs]

    def one_forward(self, index: int = 0) -> Tensor:
        return self._activation(self._xs[index], self._cap, 1, **self._more)

    def one_backward(self, y: Tensor, index: int = 0) -> Sequence[Tensor]:
        return torch.autograd.grad(y, self._inputs[index], self._data[index].grad)

    def check(self) -> None:
        """Compare a result with the definition.

        Raises:
            ValueError: it is wrong.
        """
        self._implementation.check(self.one_forward(), self._xs[0], self._cap)

    def kept(self) -> Saved:
        """What the graph of one call holds for backward."""
        return saved_for_backward(self.one_forward(), self._xs[0], self._cap, *self._more.values())


class Copies(Work):
    """The floor: copies of x to tensors that exist, in place of forward and of backward."""

    def __init__(self, data: Sequence[Data], calls: int) -> None:
        super().__init__(data, calls)
        self._targets = [torch.empty_like(d.x) for d in data]

    def one_forward(self, index: int = 0) -> Tensor:
        return self._targets[index].copy_(self._data[index].x)

    def one_backward(self, y: Tensor, index: int = 0) -> Tensor:
        return self.one_forward(index)


class KernelCopies(Copies):
    """The same by an elementwise kernel."""

    def one_forward(self, index: int = 0) -> Tensor:
        return torch.mul(self._data[index].x, 1, out=self._targets[index])


class Clones(Work):
    """The floor of results that are fresh tensors, as those of implementations are."""

    def one_forward(self, index: int = 0) -> Tensor:
        return self._data[index].x.clone()

    def one_backward(self, y: Tensor, index: int = 0) -> Tensor:
        return self._data[index].grad.clone()
