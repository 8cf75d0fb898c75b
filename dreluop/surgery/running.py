"""A run of a model that records the inputs of its sites, and every ReLU that no D-ReLU computes."""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from dreluop.modules import DReLU, SReLU
from dreluop.surgery import kinds
from dreluop.surgery.compiling import original_line
from dreluop.surgery.copies import copied
from dreluop.surgery.sites import PendingSite

_SITE_CODE = {cls.forward.__code__ for cls in (DReLU, SReLU, PendingSite)}
# With the separator, as the paths of other packages begin like torch's.
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_HERE = f"{Path(__file__).parent}{os.sep}"
# The attribute of a tensor that holds the dimension of its channels.
_DIM = "_dreluop_channel_dim"
# The attribute of a site's output that says where its input is recorded.
_NOTED = "_dreluop_noted"
_IMAGES = ("conv", "batch_norm", "group_norm", "instance_norm")
_FEATURES = ("linear", "layer_norm", "rms_norm", "embedding")
_MOVED = ("movedim", "moveaxis", "swapaxes", "swapdims", "t", "T", "mT", "getitem")
Modes = Literal["both", "train", "eval"]
# What a model is called with: positional arguments and keywords.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Seen:
    """The input of a site in one call: its shape, and the dimension of its channels if the layers show it."""

    shape: tuple[int, ...]
    dim: int | None


@dataclass
class Observed:
    """What runs of a model saw.

    Attributes:
        inputs: the inputs of each site, by its name and mode.
        relus: calls of a ReLU that no D-ReLU computes, by module, line and operator, in the mode with more.
        ran: the modes that ran.
        failed: those in which the model could not run, with the reason.
    """

    inputs: dict[str, dict[str, list[Seen]]] = field(default_factory=dict)
    relus: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    ran: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def modes(self, name: str) -> Modes | None:
        """The modes that reach a site."""
        reached = [mode for mode, found in self.inputs.get(name, {}).items() if found]
        return "both" if len(reached) == 2 else reached[0] if reached else None  # type: ignore[return-value]

    def calls(self, name: str) -> int:
        """How often a site is called in a forward pass, in the mode with more calls."""
        return max((len(found) for found in self.inputs.get(name, {}).values()), default=0)

    def swap(self, name: str, other: str) -> None:
        """Exchange the names of two sites."""
        inputs = self.inputs
        inputs[name], inputs[other] = inputs.get(other, {}), inputs.get(name, {})

    def seen(self, name: str) -> list[Seen]:
        """All different inputs of a site."""
        return list(dict.fromkeys(one for found in self.inputs.get(name, {}).values() for one in found))


def observe(model: nn.Module, names: Iterable[str], arguments: Arguments) -> Observed:
    """Run a copy of the model in eval and in train mode, and record the inputs of sites and the calls of ReLUs.

    A mode in which it cannot run is recorded as failed.

    Args:
        names: of the sites.

    Raises:
        ValueError: the model cannot be copied.
    """
    observed, model = Observed(), copied(model)
    for mode in ("eval", "train"):
        inputs: dict[str, list[Seen]] = {name: [] for name in names}
        counter = _Counter(model)
        try:
            with ExitStack() as stack:
                for name, seen in inputs.items():
                    stack.enter_context(_recording(model.get_submodule(name), seen))
                for context in (_kept_random_states(model), torch.no_grad(), _Channels(), counter):
                    stack.enter_context(context)
                args, kwargs = tree_map_only(Tensor, _of_two if mode == "train" else Tensor.clone, arguments)
                model.train(mode == "train")(*args, **kwargs)
        except Exception as error:  # a user's forward may fail in any way
            lines = str(error).strip().splitlines()
            observed.failed[mode] = f"{type(error).__name__}: {lines[0] if lines else ''}"
            continue
        observed.ran.append(mode)
        observed.relus |= counter.found
        for name, seen in inputs.items():
            observed.inputs.setdefault(name, {})[mode] = seen
    return observed


def random_states() -> list[Any]:
    """The random states of torch, Python and numpy; the last is None where numpy is not imported."""
    numpy = sys.modules.get("numpy")
    return [torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy is not None else None]


@contextmanager
def _kept_random_states(model: nn.Module) -> Iterator[None]:
    _, python_state, numpy_state = random_states()
    try:
        with torch.random.fork_rng({one.device for one in model.parameters() if one.is_cuda}):
            yield
    finally:
        random.setstate(python_state)
        if numpy_state is not None:
            sys.modules["numpy"].random.set_state(numpy_state)


@contextmanager
def _recording(site: nn.Module, seen: list[Seen]) -> Iterator[None]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if given:
            shape = torch.broadcast_shapes(*(value.shape for value in given[:2]))
            dims = {getattr(value, _DIM, None) for value in given[:2]} - {None}
            seen.append(Seen(tuple(shape), dims.pop() if len(dims) == 1 else None))
        result = type(site).forward(site, *args, **kwargs)
        setattr(result, _NOTED, (seen, len(seen) - 1))
        return result

    # A hook would miss code that calls forward itself.
    vars(site)["forward"] = forward
    try:
        yield
    finally:
        del vars(site)["forward"]


def _of_two(value: Tensor) -> Tensor:
    """Batch norm in training needs more than one value per channel."""
    return torch.cat([value, value]) if value.shape[:1] == (1,) else value.clone()


def as_arguments(example: Any) -> Arguments:
    """A tensor, a tuple or list of arguments, or a dictionary of keywords."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return tuple(example) if isinstance(example, tuple | list) else (example,), {}


class _Counter(TorchDispatchMode):
    """Counts the ReLUs that run outside of a D-ReLU."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = {id(module): name for name, module in model.named_modules()}
        self.found: Counter[tuple[str, str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _is_relu(func, args, kwargs or {}):
            place = self._place()
            if place is not None:
                self.found[(*place, str(func.overloadpacket))] += 1
        return func(*args, **(kwargs or {}))

    def _place(self) -> tuple[str, str] | None:
        """The module that is running, and the nearest line outside of torch; None inside a D-ReLU."""
        module, line, nearest = None, "", ""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and (module is None or not line):
            code = frame.f_code
            if code in _SITE_CODE:
                return None
            place = original_line(code.co_filename, frame.f_lineno)
            if not code.co_filename.startswith(_HERE):
                running = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
                if module is None and id(running) in self._names:
                    module, nearest = self._names[id(running)], place
                line = line or ("" if code.co_filename.startswith((_TORCH, "<frozen")) else place)
            frame = frame.f_back
        return module or "", line or nearest


def _is_relu(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    name = func.overloadpacket.__name__
    if name == "_transformer_encoder_layer_fwd":
        # (src, embed_dim, num_heads, 4 of attention, use_gelu, ...)
        return args[7] is False
    if func.namespace != "aten" or kinds.of_named(name, args, kwargs) is None:
        return False
    # Code clamps sizes and indices too.
    return name.rstrip("_") not in ("clamp", "hardtanh") or args[0].is_floating_point()


class _Channels(TorchFunctionMode):
    """Records on tensors which dimension holds their channels, as the layer before or the next one shows."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        seen, index = getattr(args[0], _NOTED, (None, 0)) if args else (None, 0)
        if seen is not None and seen[index].dim is None and name.startswith(_IMAGES + _FEATURES):
            seen[index] = replace(seen[index], dim=1 if name.startswith(_IMAGES) else -1)
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, Tensor):
                dim = _dim_of(name, one, args, kwargs or {})
                if dim is not None or hasattr(one, _DIM):
                    setattr(one, _DIM, dim)
        return result


def _dim_of(name: str, result: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    if name.startswith("conv") and name.endswith(("1d", "2d", "3d")):
        # Images without a batch have their channels first.
        return result.ndim - int(name[-2]) - 1
    if name.startswith(_IMAGES) and result.ndim > 1:
        return 1
    if name.startswith(_FEATURES):
        return -1 if result.ndim else None
    flat = [part for one in args for part in (one if isinstance(one, tuple | list) else (one,))]
    sources = [one for one in (*flat, *kwargs.values()) if isinstance(one, Tensor) and one.ndim == result.ndim]
    dims = {getattr(one, _DIM) % result.ndim for one in sources if getattr(one, _DIM, None) is not None}
    if len(dims) != 1 or name in _MOVED:
        return None
    (dim,) = dims
    numbers = [one % result.ndim for one in flat if isinstance(one, int)]
    if name == "transpose" and len(numbers) == 2 and dim in numbers:
        dim = sum(numbers) - dim
    elif name == "permute":
        dim = numbers.index(dim)
    return -1 if dim == result.ndim - 1 else dim
