"""What a forward does beside its tensor operations, which code made from its graph would lose.

A trace runs the forward. It is stopped before the forward writes, prints or starts anything. Where the forward asks
what a trace cannot know, it gets an answer, and the graph is one of several.
"""

from __future__ import annotations

import dis
import functools
import gc
import os
import random
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import torch


class NotTraceableError(Exception):
    """Why a forward cannot be traced."""


_NOT_USERS = tuple(
    os.path.join(path, "")
    for path in (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)))
)  # fmt: skip
_STANDARD_LIBRARY = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib"))
_PACKAGES = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("purelib", "platlib"))


@functools.cache
def is_users_file(file: str) -> bool:
    """Whether a file is a model's author's: not torch's, Python's or the surgery's own."""
    if file.startswith(("<frozen", *_NOT_USERS)) or file.endswith("typing_extensions.py"):
        return False
    return file.startswith(_PACKAGES) or not file.startswith(_STANDARD_LIBRARY)


def is_users(frame: FrameType | None) -> bool:
    """Whether a frame runs code of a model's author."""
    return frame is not None and is_users_file(frame.f_code.co_filename)


_IGNORED = ("CACHE", "EXTENDED_ARG", "PRECALL", "NOP", "RESUME", "PUSH_NULL", "NOT_TAKEN", "TO_BOOL")


@functools.lru_cache(maxsize=4096)
def _instructions(code: CodeType) -> tuple[dis.Instruction, ...]:
    return tuple(one for one in dis.get_instructions(code) if one.opname not in _IGNORED)


def _loads(one: dis.Instruction) -> str:
    """The local that an instruction loads (the last, if it loads two)."""
    name = one.argval[-1] if isinstance(one.argval, tuple) and one.argval else one.argval
    return str(name) if one.opname.startswith("LOAD_FAST") else ""


@functools.lru_cache(maxsize=4096)
def _effect(code: CodeType) -> str:
    """What the code of one function changes; empty if nothing."""
    for one in _instructions(code):
        name = one.opname
        if name in ("STORE_ATTR", "DELETE_ATTR"):
            return f"its forward sets the attribute {one.argval}"
        if name in ("STORE_GLOBAL", "DELETE_GLOBAL") or (name == "STORE_DEREF" and one.argval in code.co_freevars):
            return f"its forward sets {one.argval}, which lives outside of it"
    return ""


@functools.lru_cache(maxsize=4096)
def _question(code: CodeType) -> str:
    """What the code of one function asks that has another answer in a trace; empty if nothing."""
    found = _instructions(code)
    for before, now, after in zip((None, *found), found, (*found[1:], None), strict=False):
        name = now.opname
        handles = name == "PUSH_EXC_INFO" and (after is None or after.opname != "WITH_EXCEPT_START")
        if handles or name == "SETUP_FINALLY":
            return "its forward handles exceptions, those of the trace too"
        if name == "IS_OP" and not (before is not None and before.opname == "LOAD_CONST" and before.argval is None):
            return "its forward asks whether two values are one object"
        asks = name in ("LOAD_GLOBAL", "LOAD_NAME") and now.argval == "type"
        if name.startswith("MATCH_") or (asks and not (after is not None and _loads(after) == "self")):
            return "its forward asks for the type of a value"
    return ""


@functools.lru_cache(maxsize=4096)
def _has_context(code: CodeType) -> bool:
    return any(
        one.opname in ("BEFORE_WITH", "SETUP_WITH") or (one.opname == "LOAD_SPECIAL" and "enter" in one.argrepr)
        for one in _instructions(code)
    )


def asked_for_none(code: CodeType) -> frozenset[str]:
    """The locals of which a function asks whether they are None."""
    found = _instructions(code)
    names = set()
    for index, one in enumerate(found[:-1]):
        after = found[index + 1]
        jump = "POP_JUMP" in after.opname and "NONE" in after.opname
        compared = after.opname == "LOAD_CONST" and after.argval is None and found[index + 2].opname == "IS_OP"
        if _loads(one) and (jump or compared):
            names.add(_loads(one))
    return frozenset(names)


def globals_of(code: CodeType) -> frozenset[str]:
    """The names that a function reads outside of itself."""
    return frozenset(str(one.argval) for one in _instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME"))


# Of Python: the modules whose functions act on the world, or answer otherwise the next time.
_ACTING = frozenset({
    "logging", "warnings", "random", "time", "threading", "subprocess", "pdb", "bdb", "pickle", "shutil", "socket",
    "queue", "tempfile", "pathlib", "os", "posix", "nt", "io", "_io", "sys", "_thread", "datetime", "uuid", "secrets",
})  # fmt: skip
_ACTING_BUILTINS = frozenset({
    "print", "input", "open", "exec", "eval", "compile", "setattr", "delattr", "breakpoint", "globals", "locals",
    "vars",
})  # fmt: skip
_ASKING_BUILTINS = frozenset({"hasattr", "getattr", "callable"})
# Of torch: what computes gradients of its own, runs a part anew, or sets or tells a state.
_ACTING_TORCH = (
    "torch.utils.checkpoint", "torch.utils.tensorboard", "torch.distributed", "torch.autograd.function",
    "torch.autograd.graph", "torch.random", "torch.serialization", "torch.cuda", "torch._dynamo",
)  # fmt: skip
_STATE_OF_TORCH = frozenset({
    "is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled", "is_autocast_cpu_enabled",
    "get_autocast_dtype", "get_default_dtype", "is_tensor",
})  # fmt: skip
_READING_MODULES = frozenset({
    "__call__", "_wrapped_call_impl", "_call_impl", "__getattr__", "__dir__", "children", "modules", "named_children",
    "named_modules", "parameters", "named_parameters", "buffers", "named_buffers", "get_submodule", "get_parameter",
    "get_buffer", "__init__", "__setattr__",
})  # fmt: skip


def _acts(module: str, name: str) -> bool:
    root = module.partition(".")[0]
    if root == "torch":
        return (
            module.startswith(_ACTING_TORCH)
            or name.startswith(("set_", "_set_"))
            or (module == "torch.autograd" and name in ("backward", "grad"))
            or (module == "torch.nn.modules.module" and name not in _READING_MODULES)
        )
    return root in _ACTING or (root == "builtins" and name in _ACTING_BUILTINS)


class Watch:
    """Looks at every function that a forward calls while it is traced.

    Attributes:
        context: why no code may be made from the graph: a context manager that it would lose. Empty if none.
        asking: a function that asks an object for an attribute runs (hasattr).
        question: what the forward asked that a trace cannot know: other branches may exist. Empty if nothing.
    """

    def __init__(self, enter: Callable[[FrameType], None]) -> None:
        self._enter = enter
        self._ambient = _ambient()
        self.context = ""
        self.question = ""
        self.asking = False
        self.error: NotTraceableError | None = None
        self._importing: FrameType | None = None

    def stop(self, reason: str) -> NotTraceableError:
        # Kept too, as the forward may swallow it.
        self.error = self.error or NotTraceableError(reason)
        return self.error

    def doubt(self, reason: str) -> None:
        self.question = self.question or reason

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if self._importing is not None:
            # What a first import runs is no part of the forward.
            if event == "return" and frame is self._importing:
                self._importing = None
        elif event == "call":
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                self._importing = frame
            elif is_users(frame):
                self._look_at(frame)
            elif is_users(frame.f_back):
                module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_name
                if name == "__init__" and module == "torch.autograd.grad_mode":
                    name = type(frame.f_locals.get("self")).__name__
                elif module == "torch._compile" and "fn" in frame.f_locals:
                    # What torch keeps from its compiler, it wraps.
                    module, name = frame.f_locals["fn"].__module__, frame.f_locals["fn"].__name__
                self._check(module, name, f"{module}.{name}")
        elif event == "c_call" and is_users(frame):
            module, name = str(getattr(argument, "__module__", None) or ""), argument.__name__
            self._check(module or _module_of_method(argument), name, name)
            self.asking = module == "builtins" and name in _ASKING_BUILTINS
        elif event in ("c_return", "c_exception"):
            self.asking = False

    def _check(self, module: str, name: str, called: str) -> None:
        if _acts(module, name):
            raise self.stop(f"its forward calls {called}")
        if module.partition(".")[0] == "torch" and name in _STATE_OF_TORCH:
            self.doubt(f"its forward calls {called}")

    def _look_at(self, frame: FrameType) -> None:
        effect, question = _effect(frame.f_code), _question(frame.f_code)
        if effect:
            raise self.stop(effect)
        if question:
            self.doubt(question)
        if _has_context(frame.f_code):
            self.context = "its forward has a with statement, which a graph does not hold"
        self._enter(frame)

    def note_context(self) -> None:
        """To be called as each operation is recorded."""
        if _ambient() != self._ambient:
            self.context = "its forward changes the grad or autocast mode, which a graph does not hold"


def _module_of_method(function: Any) -> str:
    return "torch" if type(getattr(function, "__self__", None)).__module__.startswith("torch") else ""


def _ambient() -> tuple[Any, ...]:
    kinds = ("cpu", "cuda")
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(kind) for kind in kinds), *(torch.get_autocast_dtype(kind) for kind in kinds),
    )  # fmt: skip


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Show the watch every call, and put the random states back.

    Raises:
        NotTraceableError: the forward did what a graph cannot hold.
    """
    numbers = _random_states()
    before = sys.getprofile()
    collecting = gc.isenabled()
    try:
        # What cProfile sets is no function that sys.setprofile could put back.
        if before is not None and hasattr(before, "disable"):
            before.disable()
        # A collection would run finalizers and callbacks of others, which are no part of the forward.
        gc.disable()
        sys.setprofile(watch)
        yield
    finally:
        sys.setprofile(None)
        if collecting:
            gc.enable()
        if before is not None:
            before.enable() if hasattr(before, "enable") else sys.setprofile(before)
        drew = not all(_equal(value, now()) for (value, now, _) in numbers)
        for value, _, put_back in numbers:
            put_back(value)
        if watch.error is not None:
            raise watch.error
        if drew:
            watch.doubt("its forward draws random numbers, which a graph would hold as constants")


def _random_states() -> list[tuple[Any, Callable[[], Any], Callable[[Any], Any]]]:
    states: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
        (torch.get_rng_state, torch.set_rng_state), (random.getstate, random.setstate)
    ]  # fmt: skip
    if torch.cuda.is_initialized():
        states.append((torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all))
    if "numpy.random" in sys.modules:
        numpy_random = sys.modules["numpy.random"]
        states.append((numpy_random.get_state, numpy_random.set_state))
    return [(get(), get, put) for get, put in states]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    same = one == other
    return bool(same) if isinstance(same, bool) else bool(same.all())
