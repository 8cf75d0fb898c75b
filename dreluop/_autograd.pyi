"""Common calls of ``capped_relu`` with their autograd node, in the C++ of one version of torch."""

from collections.abc import Callable

from torch import Tensor

def capped_relu(
    x: Tensor,
    cap: Tensor | float,
    dim: int,
    inplace: bool,
    save: str,
    balancer: float | None,
    bias: Tensor | None,
    residual: Tensor | None,
    above: str,
    nan: str,
    /,
) -> Tensor | tuple[Tensor, Tensor] | None:
    """``dreluop.capped_relu``; None for what is not a common call, which Python then serves or refuses."""

def set_python(
    backward: Callable[..., tuple[Tensor | None, Tensor | None, Tensor | None]],
    raise_as_of_torch: Callable[[RuntimeError], None],
    /,
) -> None:
    """What backward asks where it is not the usual one (the fields of a ``BackwardCall``), and where it failed."""

def set_cpu_kernels(address: int, /) -> bool:
    """The table of kernels for plain CPU tensors, 0 for none. Whether it is of the same build."""
