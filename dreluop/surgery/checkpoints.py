"""``load_float_state_dict``: the weights of the network that was there before surgery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dreluop._internal import cap_state, checks
from dreluop.caps.statistics import capped_layers, is_capped
from dreluop.surgery.copies import copied
from dreluop.surgery.inserting import HeadedLinear, StemmedConv2d
from dreluop.surgery.replacing import check_model


@dataclass(frozen=True)
class LoadedState:
    """What a state gave a model, by key of its ``state_dict``.

    Attributes:
        loaded: taken from the state.
        caps: not in the state: caps, which kept their values.
        new_layers: not in the state: weights of ``insert_head`` and ``insert_stem``, which kept theirs.
    """

    loaded: tuple[str, ...]
    caps: tuple[str, ...]
    new_layers: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} keys loaded"]
        for what, keys in (("caps", self.caps), ("weights of new layers", self.new_layers)):
            if keys:
                lines.append(f"{len(keys)} not in the state, values kept: {what} {', '.join(keys)}")
        return "\n".join(lines)


def load_float_state_dict(model: nn.Module, state: Mapping[str, Any], *, new_layers: bool = False) -> LoadedState:
    """Load a ``state_dict`` of the network as it was before ``dreluop.surgery``, with its plain ReLUs.

    Args:
        model: with DReLUs or SReLUs, whose caps may be missing in the state; nothing else may be, or be in it alone.
        state: as ``load_state_dict`` takes it, tensors of the model's shapes (cast to its dtypes, as torch does).
        new_layers: the layers of ``insert_head`` and ``insert_stem`` may be missing too; they keep their weights.

    Returns:
        LoadedState: what was loaded, and which caps and layers kept their values. Set them next: ``calibrate_caps``.

    Raises:
        TypeError: model is no module, state no mapping, new_layers no bool.
        ValueError: model has no capped layer, is compiled, distributed, lazy or on the meta device; the state lacks
            another key, has one that the model has not, or a tensor of another shape. Nothing is loaded then.
    """
    check_model(model)
    capped_layers(model)
    if not isinstance(state, Mapping):
        raise TypeError(f"state: got {type(state).__name__}; expected a state_dict")
    new_layers = checks.flag("new_layers", new_layers)
    missing, unexpected = _rehearsed(model, state)
    caps = tuple(key for key in missing if key in _cap_keys(model))
    layers = tuple(key for key in missing if key.startswith(_new_layers(model)))
    wrong = [key for key in missing if key not in caps and not (new_layers and key in layers)]
    problems = [f"it lacks {', '.join(map(repr, wrong))}"] if wrong else []
    if layers and not new_layers:
        problems[0] += " (insert_head and insert_stem made some: new_layers=True keeps their weights)"
    problems += [f"it has {', '.join(map(repr, unexpected))}, which the model has not"] if unexpected else []
    if problems:
        raise ValueError(f"state: {'; '.join(problems)}; expected all keys of the model but those of its caps")
    _check_can_be_loaded(model)
    model.load_state_dict(state, strict=False)
    loaded = tuple(key for key in model.state_dict() if key not in missing)
    return LoadedState(loaded, caps, layers)


def _rehearsed(model: nn.Module, state: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The missing and the unexpected keys, as torch finds them (modules may rename or add some)."""
    # Assigned, the tensors of the state come into the copy, and none of the model is written over.
    rehearsal = copied(model, shared=[*model.parameters(), *model.buffers()])
    try:
        found = rehearsal.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(f"state: {error}") from error
    return found.missing_keys, found.unexpected_keys


def _check_can_be_loaded(model: nn.Module) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise ValueError(f"model: {name!r} is on the meta device, where nothing can be loaded; use to_empty before")
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(f"model: {name!r} was made in inference mode, and may be changed only there")


def _cap_keys(model: nn.Module) -> set[str]:
    modules = model.named_modules(remove_duplicate=False)
    capped = [(_join(name, ""), module) for name, module in modules if is_capped(module)]
    return {key for prefix, module in capped for key in (f"{prefix}cap", *cap_state.keys_of(prefix, module))}


def _new_layers(model: nn.Module) -> tuple[str, ...]:
    made = {HeadedLinear: "head.", StemmedConv2d: "stem."}
    modules = model.named_modules(remove_duplicate=False)
    return tuple(_join(name, made[type(module)]) for name, module in modules if type(module) in made)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
