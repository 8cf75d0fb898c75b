"""Where a layer keeps its cap, and the one way to change it: all caps that are to change, or none."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dreluop._internal import checks


class LearnedCap:
    """Marks a module whose parameter ``cap`` is learned, for code below the modules in the order of imports."""

    cap: Tensor

    @property
    def trained(self) -> Tensor:
        """What an optimizer has: the cap, or after ``dreluop.caps.flatten`` the parameter of all layers."""
        return self.cap


def settle(model: nn.Module) -> None:
    """Make sure that a write to a cap of this model is not lost.

    Raises:
        ValueError: the model is in FullyShardedDataParallel, which may go on with parameters gathered before the write.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and any(isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules()):
        raise ValueError(
            "model: got one inside FullyShardedDataParallel, which may not see its caps change; change them before, or "
            "use fully_shard"
        )
    reshard(model)


def reshard(model: nn.Module) -> None:
    """Let fully_shard's modules hold their own parameters.

    After a forward pass without a backward pass they may still hold gathered copies, and a write to one would be lost.
    """
    # To import torch.distributed.fsdp takes seconds.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def held(layer: Any) -> tuple[Tensor, ...]:
    """The parameters or buffers that hold a layer's cap: itself, part of one, or the originals of its parametrization.

    Empty where the cap is only an attribute, which a hook or a wrapper makes anew.
    """
    if is_flat(layer):
        return (layer.cap.detach(),)
    if parametrize.is_parametrized(layer, "cap"):
        made = layer.parametrizations["cap"]
        names = ["original"] if made.is_tensor else [f"original{index}" for index in range(made.ntensors)]
        return tuple(getattr(made, name) for name in names)
    found = (layer._parameters.get("cap"), layer._buffers.get("cap"))
    return tuple(tensor for tensor in found if tensor is not None)


def is_flat(layer: Any) -> bool:
    """Whether ``dreluop.caps.flatten`` put the layer's cap into one parameter with those of others."""
    return "_place" in vars(layer)


def key(layer: Any) -> tuple[int, ...]:
    """The same for layers that share their cap. The cap of a parametrized layer is a new tensor each time."""
    return (id(layer.trained), layer._place.index) if is_flat(layer) else tuple(map(id, held(layer)))


def of_layer(what: str, name: str) -> str:
    """What a message calls something of a layer, which has no name where it is the model itself."""
    return f"{what} of {name!r}" if name else what


def check_writable(layers: Mapping[str, Any]) -> None:
    """Raise ValueError, with the layer's name, where ``write`` could not change a cap."""
    for name, layer in layers.items():
        tensors = _held(name, layer)
        for place in filter(None, map(checks.place_without_values, tensors)):
            raise ValueError(
                f"model: {_cap_of(name)} is {place}, where it has no value to set; use to_empty before, or, if "
                "accelerate offloads it, accelerate.hooks.remove_hook_from_submodules"
            )
        for part in _parametrizations(layer):
            if not hasattr(part, "right_inverse"):
                raise ValueError(
                    f"model: {_cap_of(name)} is parametrized by a {type(part).__name__} without right_inverse, so "
                    "it cannot be set; give it one, or remove the parametrization first"
                )


@torch.no_grad()
def write(layers: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
    """Set the caps of these layers, by name; a value may be of one element. All are set, or none.

    A parametrized cap is set through ``right_inverse``. Every cap is read back.

    Raises:
        ValueError: a cap cannot be set, or is another afterwards.
    """
    check_writable(layers)
    wanted = {name: _placed(value, layers[name].cap) for name, value in values.items()}
    before: list[tuple[Tensor, Tensor]] = []
    try:
        for name, value in wanted.items():
            originals = held(layers[name])
            before += [(original, original.detach().clone()) for original in originals]
            for original, new in zip(originals, _inverted(name, layers[name], value), strict=True):
                _copy(original, new)
        for name, value in wanted.items():
            _check_read_back(name, layers[name], value)
    except BaseException:
        for original, old in reversed(before):
            _copy(original, old)
        raise


def set_trainable(layers: Mapping[str, Any], trainable: bool) -> None:
    """``requires_grad`` of all that the caps of these layers are made of, for all or none.

    Raises:
        ValueError: the cap of a layer does not follow.
    """
    _check_trained_together(layers)
    before: list[tuple[Tensor, bool]] = []
    try:
        for name, layer in layers.items():
            held_by = (layer.trained,) if is_flat(layer) else _held(name, layer)
            parts = [part for tensor in (held_by, _parameters(layer)) for part in tensor]
            before += [(part, part.requires_grad) for part in parts]
            for part in parts:
                _require_grad(part, trainable)
        for name, layer in layers.items():
            with torch.enable_grad():
                if layer.cap.requires_grad != trainable:
                    raise ValueError(
                        f"model: {_cap_of(name)} is made by a parametrization, and still "
                        f"{'has no' if trainable else 'has a'} gradient"
                    )
    except BaseException:
        for part, was in reversed(before):
            _require_grad(part, was)
        raise
    if not trainable:
        for part, _ in before:
            part.grad = None


def _check_trained_together(layers: Mapping[str, Any]) -> None:
    flat = {name: layer for name, layer in layers.items() if is_flat(layer)}
    for name, layer in flat.items():
        together = {other._place.index for other in flat.values() if other.trained is layer.trained}
        if len(together) < layer._place.count:
            raise ValueError(
                f"model: {_cap_of(name)} is in one parameter with those of other layers (dreluop.caps.flatten), which "
                "can be frozen only together"
            )


def keys_of(prefix: str, layer: nn.Module) -> list[str]:
    """The keys of a ``state_dict`` that hold a layer's cap."""
    names = {name: name.removeprefix(prefix) for name in layer.state_dict(prefix=prefix)}
    return [key for key, name in names.items() if name == "cap" or name.startswith(("cap_", "parametrizations.cap."))]


def _cap_of(name: str) -> str:
    return of_layer("the cap", name)


def _held(name: str, layer: nn.Module) -> tuple[Tensor, ...]:
    tensors = held(layer)
    if not tensors:
        raise ValueError(
            f"model: {_cap_of(name)} is none of its parameters but made of one, by a hook (torch.nn.utils.prune, "
            "weight_norm or spectral_norm; remove it first) or flattened by FSDP (use fully_shard)"
        )
    return tensors


def _parametrizations(layer: Any) -> list[nn.Module]:
    return list(layer.parametrizations["cap"]) if parametrize.is_parametrized(layer, "cap") else []


def _parameters(layer: nn.Module) -> list[Tensor]:
    return [parameter for part in _parametrizations(layer) for parameter in part.parameters()]


def _inverted(name: str, layer: nn.Module, value: Tensor) -> tuple[Tensor, ...]:
    """What the tensors that hold the cap must be for it to have this value."""
    result: Any = value.clone()
    for part in reversed(_parametrizations(layer)):
        inverse: Any = part.right_inverse
        try:
            result = inverse(result)
        except Exception as error:
            raise ValueError(
                f"model: {_cap_of(name)} cannot be set, as right_inverse of its {type(part).__name__} failed: {error}"
            ) from error
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _check_read_back(name: str, layer: Any, value: Tensor) -> None:
    got, want = _local(layer.cap.detach()), _local(value)
    # An inverse and its parametrization round.
    rounding = max(8 * torch.finfo(got.dtype).eps, 1e-3) if parametrize.is_parametrized(layer, "cap") else 0.0
    close = torch.isclose(got, want, rtol=rounding, atol=0.0, equal_nan=True)
    if not bool(close.all()):
        at = (~close).flatten().nonzero()[0]
        raise ValueError(
            f"model: {_cap_of(name)} is {got.flatten()[at].item():g} after it was set to "
            f"{want.flatten()[at].item():g}: its parametrization cannot give that value, or it lies in the memory of "
            "another cap; all caps were put back"
        )


def _placed(value: Tensor, cap: Tensor) -> Tensor:
    """A value with the shape, dtype, device and sharding of a cap."""
    whole = value.detach().to(cap.device, cap.dtype)
    whole = whole.reshape(()).expand(cap.shape) if whole.numel() == 1 else whole.reshape(cap.shape)
    mesh = getattr(cap, "device_mesh", None)
    if mesh is None:
        return whole
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 (takes seconds)

    return distribute_tensor(whole.contiguous(), mesh, cap.placements)  # type: ignore[attr-defined]


def _local(tensor: Tensor) -> Tensor:
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


# Only inference mode may change what was made in it.
def _require_grad(tensor: Tensor, required: bool) -> None:
    with torch.inference_mode(tensor.is_inference()):
        tensor.requires_grad_(required)


def _copy(tensor: Tensor, value: Tensor) -> None:
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.copy_(value)
