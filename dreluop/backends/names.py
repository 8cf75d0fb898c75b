"""The backends by name, and the one asked for in the environment."""

from __future__ import annotations

import os

BACKENDS = ("native", "triton", "reference")
ENVIRONMENT_VARIABLE = "DRELUOP_BACKEND"


def requested() -> str | None:
    """The backend that the environment asks for; None for the default rule.

    Raises:
        ValueError: it asks for one that does not exist.
    """
    wanted = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if wanted not in ("", *BACKENDS):
        raise ValueError(f'{ENVIRONMENT_VARIABLE}: got "{wanted}"; expected {expected()}')
    return wanted or None


def expected() -> str:
    *names, last = (f'"{name}"' for name in BACKENDS)
    return f"{', '.join(names)} or {last}"
