"""What an activation makes +0 that it otherwise would not, as one number (C++: `dreluop/dtype_traits.h`)."""

from __future__ import annotations

from typing import Any

NOTHING, ABOVE, NAN = 0, 1, 2  # Bits: what is above the cap, and NaN.
MOST = ABOVE | NAN

ABOVE_CHOICES = ("cap", "zero")
NAN_CHOICES = ("propagate", "zero")


def zeroed(above: Any, nan: Any) -> int:
    """The number of the arguments ``above`` and ``nan``.

    Raises:
        ValueError: one of them is unknown.
    """
    if type(above) is str and type(nan) is str and above == "cap" and nan == "propagate":
        return NOTHING
    _check("above", above, ABOVE_CHOICES)
    _check("nan", nan, NAN_CHOICES)
    return ABOVE * int(above == "zero") + NAN * int(nan == "zero")


def _check(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f'{name}: got {value!r}; expected "{choices[0]}" or "{choices[1]}"')
