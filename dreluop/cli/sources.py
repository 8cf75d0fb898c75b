"""What a command's user names: a network or data by ``module:name`` or a file, and the keys of a configuration."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def factory(key: str, given: Any) -> Callable[[], Any]:
    """The function that ``module:name`` names; the module may lie in the working folder.

    Raises:
        TypeError, ValueError: it is no such text, or there is no such module or function.
    """
    if not isinstance(given, str):
        raise TypeError(f'{key}: got {type(given).__name__}; expected "module:function"')
    module_name, colon, name = given.partition(":")
    if not colon or not module_name or not name:
        raise ValueError(f'{key}: got "{given}"; expected "module:function"')
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.split(".")[0] and error.name != module_name:
            raise
        raise ValueError(f'{key}: there is no module "{module_name}" here or among the installed ones') from error
    found: Any = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f'{key}: "{module_name}" has no function "{name}"')
    result: Callable[[], Any] = found
    return result


def model_of(key: str, given: Any) -> nn.Module:
    """The network that a factory, called without arguments, makes."""
    made = factory(key, given)()
    if not isinstance(made, nn.Module):
        raise TypeError(f"{key}: {given} gave {type(made).__name__}; expected a torch.nn.Module")
    return made


def inputs_and_labels(key: str, given: Any) -> tuple[Tensor, Tensor]:
    """Inputs and labels: of a factory, or the arrays ``x`` and ``y`` of a file .npz.

    Raises:
        TypeError, ValueError: there is no such file or function, or it gives something else.
    """
    if isinstance(given, str) and given.endswith(".npz"):
        import numpy as np  # noqa: PLC0415 (slow to import)

        if not Path(given).exists():
            raise ValueError(f'{key}: there is no file "{given}"')
        with np.load(given) as arrays:
            if not {"x", "y"} <= set(arrays):
                raise ValueError(f"{key}: {given} has the arrays {', '.join(arrays)}; expected x and y")
            made: Any = (torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]))
    else:
        made = factory(key, given)()
    if not isinstance(made, tuple | list) or len(made) != 2 or not all(isinstance(one, Tensor) for one in made):
        raise TypeError(f"{key}: {given} gave {type(made).__name__}; expected two tensors, inputs and labels")
    x, y = made
    if len(x) != len(y) or y.ndim != 1:
        raise ValueError(
            f"{key}: {given} gave shapes {tuple(x.shape)} and {tuple(y.shape)}; expected one label an input"
        )
    return x, y.long()


def check_keys(where: str, given: Mapping[str, Any], known: Collection[str], needed: Collection[str] = ()) -> None:
    """Raise ValueError for a key that is not known, with the nearest that is, or one that is missing."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            raise ValueError(f'{where}: got the key "{name}"; expected {", ".join(known)}{hint}')
    for name in needed:
        if name not in given:
            raise ValueError(f'{where}: the key "{name}" is missing')
