"""Functions compiled from new source with the names, the closure and the ``super()`` of an original."""

from __future__ import annotations
import __future__

import itertools
import linecache
import textwrap
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SCOPE = "names_of_the_method"
FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
_HEADER_LINES = 3
_numbers = itertools.count()
# For the files that are made here: the line of the author's file that each line comes from.
_originals: dict[str, Mapping[int, str]] = {}


def new_function(
    source: str, old: types.FunctionType, class_name: str, names: Mapping[str, Any], lines: Mapping[int, str]
) -> types.FunctionType:
    """A function of new source with the globals, closure and defaults of an old one.

    Args:
        names: what the source may name besides.
        lines: where the lines of the source come from, counted from 1.
    """
    file = f"<dreluop.surgery {old.__qualname__} {next(_numbers)}>"
    _originals[file] = {line + _HEADER_LINES: place for line, place in lines.items()}
    cells = dict(zip(old.__code__.co_freevars, old.__closure__ or (), strict=True))
    cells |= {name: types.CellType(value) for name, value in names.items()}
    free = ", ".join(name for name in cells if name != "__class__")
    # The method may name its own class, which must not mean the one that is defined here.
    outside = "pass" if class_name in cells else f"global {class_name}"
    text = f"def {_SCOPE}({free}):\n    {outside}\n    class {class_name}:\n{textwrap.indent(source, ' ' * 8)}\n"
    # With its lines in linecache the code shows in tracebacks and inspect.getsource, and TorchDynamo finds it.
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    code: types.CodeType = compile(text, file, "exec", flags=old.__code__.co_flags & FUTURES, dont_inherit=True)
    for name in (_SCOPE, class_name, old.__code__.co_name):
        code = next(one for one in code.co_consts if isinstance(one, types.CodeType) and one.co_name == name)
    closure = tuple(cells[name] for name in code.co_freevars)
    new = types.FunctionType(code, old.__globals__, old.__name__, old.__defaults__, closure)
    new.__kwdefaults__, new.__annotations__ = old.__kwdefaults__, old.__annotations__
    new.__qualname__, new.__module__, new.__doc__ = old.__qualname__, old.__module__, old.__doc__
    vars(new).update(vars(old))
    return new


def original_line(file: str, line: int) -> str:
    """``file.py:12``: the author's line, also of code that surgery wrote."""
    return _originals.get(file, {}).get(line, f"{Path(file).name}:{line}")
