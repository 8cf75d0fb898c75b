"""Triton's interpreter, made quick enough for thousands of small cases."""

from __future__ import annotations

from typing import Any

import numpy as np


def make_quick() -> None:
    """Patch the interpreter to prepare the language once per function, and to reduce by halves of arrays.

    As it is, it prepares the language on every call of a function, and never takes that back: once is enough. And it
    reduces with a function of ours number by number; the order in which it does is not part of the language.
    """
    from triton.runtime import interpreter  # noqa: PLC0415 (only where TRITON_INTERPRET=1 is set)

    prepared: set[Any] = set()

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.fn not in prepared:
            interpreter._patch_lang(self.fn)
            prepared.add(self.fn)
        return self.rewrite()(*arguments, **named)

    interpreter.InterpretedFunction.__call__ = call

    def reduce(self: Any, given: Any) -> Any:
        parts = given if isinstance(given, tuple) else (given,)
        length = parts[0].handle.data.shape[self.axis]
        while length > 1:
            halves = [np.split(part.handle.data, 2, axis=self.axis) for part in parts]
            first, second = (
                [self.to_tensor(half[k], part.dtype) for half, part in zip(halves, parts, strict=True)] for k in (0, 1)
            )
            parts = self.combine_fn.fn(*first, *second)
            length //= 2
        results = [self.to_tensor(np.squeeze(part.handle.data, axis=self.axis), part.dtype) for part in parts]
        return tuple(results) if len(results) > 1 else results[0]

    interpreter.ReduceOps.generic_reduce = reduce
