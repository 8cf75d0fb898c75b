"""Triton's interpreter, made quick enough for thousands of small cases."""

from __future__ import annotations

from typing import Any


def make_quick() -> None:
    """Patch the interpreter to prepare the language once per function, not on every call of one.

    Nothing that it computes changes: it never takes back what it prepares for a called function, so once is enough.
    """
    from triton.runtime import interpreter  # noqa: PLC0415 (only where TRITON_INTERPRET=1 is set)

    prepared: set[Any] = set()

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.fn not in prepared:
            interpreter._patch_lang(self.fn)
            prepared.add(self.fn)
        return self.rewrite()(*arguments, **named)

    interpreter.InterpretedFunction.__call__ = call
