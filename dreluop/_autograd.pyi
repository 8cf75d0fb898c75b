"""The usual call of ``capped_relu`` with its autograd node, in the C++ of one version of torch."""

from collections.abc import Callable

from torch import Tensor

def capped_relu(x: Tensor, cap: Tensor | float, dim: int, /) -> Tensor | None:
    """``dreluop.capped_relu``; None for what is not the usual call, which Python then serves or refuses."""

def set_backward_in_python(
    function: Callable[[Tensor, Tensor, Tensor, int, bool, bool], tuple[Tensor | None, Tensor | None]], /
) -> None:
    """What backward asks where it is not the usual one: called with grad, y, cap, dim, need_x and need_cap."""
