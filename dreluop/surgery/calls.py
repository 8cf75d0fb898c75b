"""Finds every call of an activation in the code of a model, and every attribute that holds an activation module."""

from __future__ import annotations

import ast
import types
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from dreluop.surgery import kinds, sites
from dreluop.surgery.classes import origin_of, with_function
from dreluop.surgery.copies import parts
from dreluop.surgery.kinds import Activation
from dreluop.surgery.methods import (
    Method,
    NoSourceError,
    method,
    methods_of,
    names_in,
    outer,
)  # fmt: skip
from dreluop.surgery.resolving import UNKNOWN, Scope, Slot, literal

SlotKey = tuple[int, str]
# By name: the class that defines a method, what it holds, and the function inside.
_Definitions = dict[str, list[tuple[type, Any, types.FunctionType]]]
# The dictionaries of nn.Module itself, and those of hooks that get inputs or outputs.
STATE = frozenset(vars(nn.Module()))
HOOKS = [name for name in STATE if name.startswith(("_forward", "_backward"))]
_COMPUTES_INSIDE = "it computes its ReLU inside"
TRANSFORMER_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_QUANTIZED = ("torch.ao.", "torch.nn.quantized", "torch.nn.intrinsic", "torch.nn.qat")


@dataclass(eq=False)
class Call:
    """One call of an activation.

    Attributes:
        owner: the module whose code makes the call; the holder of the slot if no readable code calls it.
        slot: the attribute that holds the activation module; None for a function.
        node, x: the call in the source and the expression of its input; None if only the slot is known, x also if the
            arguments are packed with ``*`` or ``**``.
        is_certain: the call always reaches this activation; else it must be checked each time.
        reason: why surgery must leave the call as it is; empty if it need not.
        is_reached: whether the forward of the module gets to the method, by the names that its methods read.
    """

    owner: nn.Module
    activation: Activation
    source: str
    slot: Slot | None = None
    method: Method | None = None
    node: ast.Call | None = None
    x: ast.expr | None = None
    is_certain: bool = False
    reason: str = ""
    is_reached: bool = True

    @property
    def slot_key(self) -> SlotKey | None:
        return (id(self.slot[0]), self.slot[1]) if self.slot is not None else None

    @property
    def is_clamp(self) -> bool:
        """Whether the source is a clamp, which is an activation only after a layer."""
        return self.source.rpartition(".")[2].startswith(("clamp", "clip"))

    @property
    def line(self) -> str:
        return self.method.line(self.node) if self.method and self.node else ""


@dataclass(eq=False)
class Code:
    """The methods of a module that can be read and changed.

    Attributes:
        methods: the name of each in the class that surgery makes.
        supers: calls of ``super().name(...)`` in them, by id of the node, and the method that each reaches.
    """

    module: nn.Module
    methods: dict[Method, str] = field(default_factory=dict)
    supers: dict[int, Method] = field(default_factory=dict)


class Found:
    """The activations that the code of a model calls. The model is not changed.

    Attributes:
        paths: the first name of each module, by id.
        unread: modules that may call an activation in code that cannot be read or changed, with the reason.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.modules())
        self.paths = {id(module): name for name, module in model.named_modules()}
        self.calls: list[Call] = []
        self.code: dict[int, Code] = {}
        self.unread: dict[str, str] = {}
        slots = {id(module): list(_slots(module)) for module in self.modules}
        self._homes: dict[int, Slot] = {}
        # The slots whose activations a batch norm with caps computes.
        self._in_norms: set[SlotKey | None] = set()
        for slot in (call.slot for found in slots.values() for call in found):
            self._homes.setdefault(id(held(slot)), slot)  # type: ignore[arg-type]
        for module in self.modules:
            self._read(module)
            self.calls += slots[id(module)]
        coded = {call.slot_key for call in self.calls if call.node} | self._in_norms
        self.calls = [call for call in self.calls if call.node or call.slot_key not in coded]

    def _read(self, module: nn.Module) -> None:
        """Add the calls that the methods of a module make."""
        path = self.paths[id(module)]
        reason = _cannot_be_read(module)
        if reason:
            if reason == _COMPUTES_INSIDE or _may_call_activation(module):
                self.unread[path] = reason
            return
        if kinds.of_module(module) is not None:
            return
        definitions: _Definitions = defaultdict(list)
        for cls, name, value, function in methods_of(type(module)):
            definitions[name].append((cls, value, function))
        code, reached = Code(module), _reached(definitions)
        for name in sorted(definitions, key=lambda name: name != "forward"):
            known = len(self.calls)
            self._read_method(code, definitions, name, 0)
            for call in self.calls[known:]:
                call.is_reached = name in reached
        if code.methods:
            self.code[id(module)] = code

    def _read_method(self, code: Code, definitions: _Definitions, name: str, depth: int) -> Method | None:
        cls, value, function = definitions[name][depth]
        if kinds.of_callable(function) is not None:
            return None
        try:
            read = method(*origin_of(cls, name), function)
            if read in code.methods:
                return read
            scope = Scope(read, code.module)
            found = [call for node in read.calls if (call := _activation_call(scope, node, self._homes)) is not None]
            if found:
                with_function(value, function, function)
            if found and not read.receiver:
                raise NoSourceError("it has no parameter self")
        except NoSourceError as error:
            if _mentions_activation(function):
                self.unread[self.paths[id(code.module)]] = f"{cls.__name__}.{name}: {error}"
            return None
        for node in read.calls:
            slot = scope.slot(node.args[1]) if scope.resolve(node.func) is sites.call_norm else None
            self._in_norms |= {(id(slot[0]), slot[1])} if slot is not None else set()
        code.methods[read] = name if depth == 0 else f"_{cls.__name__.lstrip('_')}_{name}"
        self.calls += found
        order = type(code.module).__mro__.index
        for node in _super_calls(read):
            target = read.mangled(node.func.attr)  # type: ignore[attr-defined]
            above = definitions.get(target, ())
            next_one = next((i for i, (base, *_) in enumerate(above) if order(base) > order(read.cls)), None)
            if next_one is not None:
                reached = self._read_method(code, definitions, target, next_one)
                if reached is not None:
                    code.supers[id(node)] = reached
        return read


def _reached(definitions: _Definitions) -> set[str]:
    """The methods that forward gets to, by the names that they read; all of them without a forward of their own."""
    if "forward" not in definitions:
        return set(definitions)
    found, new = set[str](), {"forward"}
    while new:
        found |= new
        functions = (function for name in new for _, _, function in definitions[name])
        read = set[str]().union(*(names_in(one.__code__) for one in functions))
        new = (read & definitions.keys()) - found
    return found


def _slots(module: nn.Module) -> Iterator[Call]:
    """The attributes of a module that hold activations, each as a call."""
    names = [name for name, child in module._modules.items() if child and kinds.of_module(child)]
    # Torch's own code calls this attribute with the input alone.
    names += ["activation"] if isinstance(module, TRANSFORMER_LAYERS) else []
    for name in dict.fromkeys(names):
        activation = kinds.of_callable(held((module, name)))
        if activation is not None:
            yield Call(module, activation, f"module {name}", (module, name))


def held(slot: Slot | None) -> Any:
    """The activation in a slot; None for a call of a function, which has no slot."""
    return getattr(*slot, None) if slot is not None else None


def has_hooks(module: Any) -> bool:
    """Whether a module has hooks that get its inputs or outputs."""
    return isinstance(module, nn.Module) and any(getattr(module, name) for name in HOOKS)


def _cannot_be_read(module: nn.Module) -> str:
    name = f"{type(module).__module__}.{type(module).__name__}"
    nonlinearity = getattr(module, "nonlinearity", "") or getattr(module, "mode", "")
    is_relu_rnn = isinstance(module, nn.RNNBase | nn.RNNCellBase) and nonlinearity in ("relu", "RNN_RELU")
    is_chain = kinds.forward_of(module) is nn.Sequential.forward
    reasons = {
        "it is a TorchScript module, which has no Python code to change": isinstance(module, torch.jit.ScriptModule),
        "it is a torch.fx graph; apply surgery to the module before it is traced": isinstance(module, fx.GraphModule),
        "its class was made by torch.nn.utils.parametrize; apply surgery before": name.startswith(
            "torch.nn.utils.parametrize."
        ),
        "its forward is set on the instance": "forward" in vars(module),
        _COMPUTES_INSIDE: is_relu_rnn or (name.startswith(_QUANTIZED) and "relu" in name.lower() and not is_chain),
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def _may_call_activation(module: nn.Module) -> bool:
    """Whether code that cannot be changed calls an activation that is no module of its own."""
    if isinstance(module, torch.jit.ScriptModule):
        return any(f"{name}(" in str(getattr(module, "code", "")) for name in kinds.NAMES)
    if isinstance(module, fx.GraphModule):
        called = (node.target for node in module.graph.nodes if node.op in ("call_function", "call_method"))
        return any(one in kinds.NAMES or kinds.spelled(one) for one in called)
    own = getattr(vars(module).get("forward"), "__func__", vars(module).get("forward"))
    functions = (own, *(function for *_, function in methods_of(type(module))))
    return any(_mentions_activation(one, module._modules) for one in functions if hasattr(one, "__code__"))


def _mentions_activation(function: Any, others: Iterable[str] = ()) -> bool:
    """Whether a function reads a name of an activation, or a name that stands for one."""
    names = names_in(function.__code__)
    values = (part for name in names for part in parts(outer(function, name, None)))
    return not (names & kinds.NAMES).issubset(others) or any(map(kinds.is_activation, values))


def _super_calls(read: Method) -> Iterator[ast.Call]:
    for node in read.calls:
        above = node.func.value if isinstance(node.func, ast.Attribute) else None
        if isinstance(above, ast.Call) and isinstance(above.func, ast.Name) and above.func.id == "super":
            yield node


def _activation_call(scope: Scope, node: ast.Call, homes: dict[int, Slot]) -> Call | None:
    function, called = node.func, scope.resolve(node.func)
    args = [_constant(scope, arg) for arg in node.args]
    kwargs = {one.arg or "**": _constant(scope, one.value) for one in node.keywords}
    x = _only_argument(node)
    reason, slot, source, is_certain = "", None, ast.unparse(function), False
    if isinstance(called, nn.Module):
        activation = kinds.of_module(called)
        slot = scope.slot(function) or homes.get(id(called))
        source = f"module {slot[1]}" if slot else source
    elif called is not UNKNOWN:
        activation = kinds.of_call(called, args, kwargs)
        if activation is None and kwargs.get("inplace") is UNKNOWN:
            activation = kinds.of_call(called, args, {**kwargs, "inplace": False})
            reason = "whether it is in place is decided when it runs"
        is_certain, source = scope.is_global(function), kinds.spelled(called) or source
    elif isinstance(maker := scope.alias(function) or function, ast.Call):
        made = (
            [scope.resolve(arg) for arg in maker.args],
            {one.arg: scope.resolve(one.value) for one in maker.keywords},
        )
        activation, is_certain = kinds.made_by(scope.resolve(maker.func), *made), True  # type: ignore[arg-type]
    elif isinstance(function, ast.Attribute) and not isinstance(scope.resolve(function.value), nn.Module):
        activation = kinds.of_method(function.attr, args, kwargs)
        x, source, is_certain = function.value, f"Tensor.{function.attr}", True
    else:
        return None
    if activation is None:
        return None
    if x is None and not isinstance(called, nn.Module):
        reason = "its arguments are packed with * or **"
    reason = reason or _why_not(scope, activation, node, x)
    return Call(scope.module, activation, source, slot, scope.method, node, x, is_certain, reason)


def _only_argument(node: ast.Call) -> ast.expr | None:
    """The expression of an activation's input; None if it is packed with ``*`` or ``**``."""
    if node.args:
        return None if any(isinstance(arg, ast.Starred) for arg in node.args) else node.args[0]
    return next((one.value for one in node.keywords if one.arg == "input"), None)


def _constant(scope: Scope, node: ast.expr) -> Any:
    """A number or flag that is written in a call, or a flag of the module; never its mode."""
    value = literal(node)
    if value is not UNKNOWN:
        return value
    flag = scope.resolve(node)
    is_mode = isinstance(node, ast.Attribute) and node.attr == "training"
    return flag if isinstance(flag, bool) and not is_mode else UNKNOWN


def _why_not(scope: Scope, activation: Activation, node: ast.Call, x: ast.expr | None) -> str:
    """Why a call is no activation to cap; empty if it may be one."""
    if x is None:
        return ""
    if scope.is_made_of_parameters(x):
        return "its input is computed from parameters only"
    above, x = scope.method.parents.get(id(node)), scope.alias(x) or x
    is_divided = isinstance(above, ast.BinOp) and isinstance(above.op, ast.Div) and literal(above.right) == 6
    is_shifted = 3 in map(literal, scope.operands(x) or scope.operands(x, "add_") or ())
    is_sigmoid = activation.bound == 6 and (is_divided or is_shifted)
    return "it is part of a hard sigmoid or hard swish" if is_sigmoid else ""
