"""The backends by name, and what is asked for in the environment."""

from __future__ import annotations

import os
from collections.abc import Sequence

BACKENDS = ("native", "triton", "reference")
ENVIRONMENT_VARIABLE = "DRELUOP_BACKEND"
FORMS = ("auto", "decompose", "opaque")
FORM_VARIABLE = "DRELUOP_COMPILE"


def requested() -> str | None:
    """The backend that the environment asks for; None for the default rule.

    Raises:
        ValueError: it asks for one that does not exist.
    """
    return _requested(ENVIRONMENT_VARIABLE, BACKENDS)


def requested_form() -> str:
    """What the environment asks torch.compile to see: one of ``FORMS``.

    Raises:
        ValueError: it asks for one that does not exist.
    """
    return _requested(FORM_VARIABLE, FORMS) or "auto"


def _requested(variable: str, known: Sequence[str]) -> str | None:
    wanted = os.environ.get(variable, "")
    if wanted not in ("", *known):
        raise ValueError(f'{variable}: got "{wanted}"; expected {listed(known)}')
    return wanted or None


def listed(known: Sequence[str]) -> str:
    *names, last = (f'"{name}"' for name in known)
    return f"{', '.join(names)} or {last}"
