"""The usual call of ``capped_relu`` with its autograd node, in the C++ of one version of torch."""

from collections.abc import Callable

from torch import Tensor

def capped_relu(x: Tensor, cap: Tensor | float, dim: int, inplace: bool, /) -> Tensor | None:
    """``dreluop.capped_relu``; None for what is not the usual call, which Python then serves or refuses."""

def set_python(
    backward: Callable[[Tensor, Tensor, Tensor, int, bool, bool], tuple[Tensor | None, Tensor | None]],
    raise_as_of_torch: Callable[[RuntimeError], None],
    /,
) -> None:
    """What backward asks where it is not the usual one (grad, y, cap, dim, need_x, need_cap), and where it failed."""
