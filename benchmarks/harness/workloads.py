"""Forward and backward of an implementation, many times over, on rotated buffers: what is captured and timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.harness import implementations as c
from benchmarks.harness.memory import Saved, saved_for_backward

if TYPE_CHECKING:
    from benchmarks.kernels.suite import Data


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

    def first_forward(self, _: object) -> Tensor:
        return self.one_forward()

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


class Clones(Work):
    """The floor of results that are fresh tensors, as those of implementations are."""

    def one_forward(self, index: int = 0) -> Tensor:
        return self._data[index].x.clone()

    def one_backward(self, y: Tensor, index: int = 0) -> Tensor:
        return self._data[index].grad.clone()
