"""``x += y`` and its like as functions.

torch.fx writes a call of ``operator.iadd`` as the statement ``x += y``. Where x is a number that is used again under
its old name, that is another program; a call of these is not.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

NAMES = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul")


def _function(name: str) -> Callable[[Any, Any], Any]:
    operate: Callable[[Any, Any], Any] = getattr(operator, name)

    def function(x: Any, y: Any) -> Any:
        return operate(x, y)

    # Code made from a graph, and pickles, find a function by its module and name.
    function.__name__ = function.__qualname__ = name
    return function


FUNCTIONS = {name: _function(name) for name in NAMES}
globals().update(FUNCTIONS)
