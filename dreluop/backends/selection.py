"""Which backend serves a tensor: the default rule, the choice of a thread, and why a backend cannot serve.

The default rule, per kind of device, is the first of these that can serve it:

===========  ===================================================
device       backends
===========  ===================================================
cpu          native (compiled), reference (pure PyTorch)
cuda         native (compiled), triton, reference
xpu          triton, reference
any other    reference
===========  ===================================================

``use_backend`` or the environment variable ``DRELUOP_BACKEND`` choose otherwise; then a tensor that the chosen backend
cannot serve is an error. Each operator has an overload per backend that can be chosen (``ops.schemas``): the choice is
which overload is called. So it is fixed when a function is traced, and torch.compile, which guards on it, traces anew
when it changes. A backward runs on the backend of its forward, whatever thread runs it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor

from dreluop._internal import env, torch_private
from dreluop.backends import native, reference, triton
from dreluop.ops.handles import DEFAULT, FUSED, REFERENCE, TRITON, Operators
from dreluop.ops.schemas import SCHEMAS, library, overload

BackendName = Literal["native", "triton", "reference"]
Form = Literal["auto", "decompose", "opaque"]

DEFAULT_RULE: dict[str, tuple[str, ...]] = {
    "cpu": ("native", "reference"),
    "cuda": ("native", "triton", "reference"),
    "xpu": ("triton", "reference"),
}
# `operators_for` says where native cannot serve; everywhere else the default rule begins with it.
_OPERATORS: dict[str | None, Operators] = {
    None: DEFAULT,
    "native": DEFAULT,
    "triton": TRITON,
    "reference": REFERENCE,
    FUSED.backend: FUSED,
}


class _Chosen(threading.local):
    def __init__(self) -> None:
        # Set here, not on the class: torch.compile guards on attributes of the thread's instance only.
        self.name: str | None = env.requested()
        self.form: str = env.requested_form()


_chosen = _Chosen()


class _Chooser:
    """Sets a choice of this thread: at once, and where it is entered, until it is left."""

    _attribute: str

    def __init__(self, value: str | None) -> None:
        self._value = value
        self._before: list[str | None] = [getattr(_chosen, self._attribute)]
        self._made = True
        # Last: an interrupt (Ctrl-C) before it leaves nothing chosen.
        setattr(_chosen, self._attribute, value)

    def __enter__(self) -> None:
        try:
            if self._chosen_when_made():
                self._made = False
            else:
                # Entered later, again, or in another thread, where something else may be chosen.
                self._made = False
                self._before.append(getattr(_chosen, self._attribute))
                setattr(_chosen, self._attribute, self._value)
        except BaseException:
            # An interrupt: the block was not entered, so no `__exit__` follows.
            if self._chosen_when_made():
                setattr(_chosen, self._attribute, self._before[-1])
            raise

    def _chosen_when_made(self) -> bool:
        return self._made and getattr(_chosen, self._attribute) == self._value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Put back before it is forgotten: an interrupt may come between the two.
        setattr(_chosen, self._attribute, self._before[-1])
        self._before.pop()


class use_backend(_Chooser):  # noqa: N801 (called like a function, as torch.set_grad_enabled is)
    """Choose this thread's backend: ``with use_backend("reference"): ...``, or ``use_backend("reference")`` for good.

    Args:
        backend: ``"native"`` (the compiled kernels), ``"triton"`` or ``"reference"`` (pure PyTorch); None for the
            default rule (``dreluop.backends.selection``).

    The choice is looked at when a function of dreluop is called, or traced by torch.compile, which recompiles when it
    changes; the backward of that call follows it. A tensor that the backend cannot serve is then a RuntimeError that
    says why. Other threads keep their own choice; at first it is what ``DRELUOP_BACKEND`` says.

    Raises:
        ValueError: there is no such backend.
    """

    _attribute = "name"

    def __init__(self, backend: BackendName | None) -> None:
        if backend is not None and backend not in env.BACKENDS:
            raise ValueError(
                f"backend: got {backend!r}; expected {env.listed(env.BACKENDS)}, or None for the default rule"
            )
        super().__init__(backend)


class compile_mode(_Chooser):  # noqa: N801
    """Choose what torch.compile sees of ``capped_relu`` in this thread: ``with compile_mode("opaque"): ...``.

    Args:
        form: ``"opaque"``: operators of ours, with the kernels of the backend; ``"decompose"``: standard operators,
            which the compiler fuses with their neighbors, whatever backend is chosen; ``"auto"``: the rule of
            ``dreluop.backends.compile_policy``, which also says which calls are opaque all the same.

    The choice is looked at when torch.compile traces a function, which it does anew when the choice changes. Eager
    calls and torch.export do not ask. Other threads keep their own; at first it is what ``DRELUOP_COMPILE`` says, else
    ``"auto"``.

    Raises:
        ValueError: there is no such form.
    """

    _attribute = "form"

    def __init__(self, form: Form) -> None:
        if form not in env.FORMS:
            raise ValueError(f"form: got {form!r}; expected {env.listed(env.FORMS)}")
        super().__init__(form)


def available_backends(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """The backends that can serve tensors of a device, those first that the default rule prefers.

    Initializes CUDA when asked about it. ``python -m dreluop`` says why the others cannot.

    Args:
        device: a device, or the name of a kind of device.

    Raises:
        RuntimeError: torch knows no such device.
    """
    kind = torch.device(device).type
    preferred = DEFAULT_RULE.get(kind, ("reference",))
    others = tuple(name for name in env.BACKENDS if name not in preferred)
    return tuple(name for name in (*preferred, *others) if unavailable_reason(name, kind) is None)


# It asks the driver about every GPU.
_triton_reason = functools.cache(triton.unavailable_reason)


def unavailable_reason(backend: str, device_type: str) -> str | None:
    """Why a backend cannot serve tensors on a kind of device; None if it can."""
    if backend == "triton":
        return _triton_reason(device_type)
    if backend == "native" and device_type == "cpu":
        return native.load_error
    if backend == "native" and device_type == "cuda":
        return native.cuda_reason()
    if backend == "native":
        return f"the compiled kernels serve cpu and cuda tensors, not {device_type}"
    return None


# What torch.compiler.assume_constant_result sets: that one imports dynamo, and so triton, which take seconds.
torch_private.constant_when_compiled(unavailable_reason)


def operators() -> Operators:
    """The operators of this thread's choice, where `operators_for` has been asked before."""
    return _OPERATORS[_chosen.name]


def chosen_form() -> str:
    """What this thread wants torch.compile to see."""
    return _chosen.form


def nothing_chosen() -> bool:
    """Whether the default rule holds in this thread."""
    return _chosen.name is None


def by_default_rule(x: Any) -> bool:
    """Whether the operators of the default rule serve x: nothing is chosen, or native where that is the same."""
    name = _chosen.name
    if name is None:
        return True
    return name == "native" and isinstance(x, Tensor) and unavailable_reason(name, x.device.type) is None


def operators_of(backend: str) -> Operators:
    """The operators of a backend, for tensors that it can serve."""
    return _OPERATORS[backend]


def operators_for(x: Tensor) -> Operators:
    """The operators of this thread's choice.

    Raises:
        RuntimeError: the chosen backend cannot serve x.
    """
    name = _chosen.name
    if name is not None:
        reason = unavailable_reason(name, x.device.type)
        if reason is not None:
            raise RuntimeError(f'the backend "{name}" was asked for, but cannot serve a tensor on {x.device}: {reason}')
    return _OPERATORS[name]


class using:  # noqa: N801
    """Choose operators for the calls within: what was chosen when a forward ran, for its derivatives."""

    def __init__(self, chosen: Operators) -> None:
        self._chosen = chosen

    def __enter__(self) -> None:
        self._before = _chosen.name
        _chosen.name = self._chosen.backend

    def __exit__(self, *_: object) -> None:
        _chosen.name = self._before


def _first_tensor(arguments: tuple[Any, ...]) -> Tensor:
    first: Tensor = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
    return first


def _triton_kernel(name: str) -> Callable[..., Any]:
    """An operator by Triton, which is imported at the first call: that takes a second."""

    def kernel(*arguments: Any) -> Any:
        tensor = _first_tensor(arguments)
        reason = _triton_reason(tensor.device.type)
        if reason is not None:
            raise RuntimeError(f"dreluop::{name}.triton: cannot serve a tensor on {tensor.device}: {reason}")
        return triton.functions()[name](*arguments)

    return kernel


def _by_default(name: str) -> Callable[..., Any]:
    """The rest of the default rule, where native does not serve: Triton, else the reference."""
    by_triton, by_reference = _triton_kernel(name), getattr(reference, name)

    def kernel(*arguments: Any) -> Any:
        serves = _triton_reason(_first_tensor(arguments).device.type) is None
        return (by_triton if serves else by_reference)(*arguments)

    return kernel


def _complete_default_rule(device_type: str, key: str) -> None:
    """Once torch has initialized the devices of a kind."""
    if "native" in DEFAULT_RULE[device_type] and native.cuda_reason() is None:
        return
    if env.requested() in (None, "triton"):
        for name in SCHEMAS:
            library.impl(name, _by_default(name), key)


def register() -> None:
    """Serve the overloads of Triton, and the default rule once torch initializes a kind of device."""
    for name in SCHEMAS:
        library.impl(overload(name, "triton"), _triton_kernel(name), "CompositeExplicitAutograd")
    torch_private.call_when_initialized("cuda", functools.partial(_complete_default_rule, "cuda", "CUDA"))
    torch_private.call_when_initialized("xpu", functools.partial(_complete_default_rule, "xpu", "XPU"))
