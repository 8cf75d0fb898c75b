"""The batch norm before an activation, where both can become one operator."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dreluop.batch_norm import BatchNormActivation
from dreluop.surgery import calls, kinds, sums
from dreluop.surgery.calls import Call, Found
from dreluop.surgery.copies import parts
from dreluop.surgery.resolving import UNKNOWN, Scope, attribute, literal
from dreluop.surgery.sites import WITH_CAPS
from dreluop.surgery.sums import Sum

NOT_BEFORE = "its batch norm is not called right before it"
_BETWEEN = "other operations run between its batch norm and it"
_LEAVING = (ast.Return, ast.Raise, ast.Break, ast.Continue, ast.Yield, ast.YieldFrom, ast.Await)


@dataclass(frozen=True)
class Norm:
    """A batch norm that feeds one activation only, by itself or in a sum.

    Attributes:
        call: of the batch norm, in the code; None in a Sequential.
        x: what it normalizes, read where the activation is called.
        residual: the other operand of the sum.
        statement: one that then does nothing.
    """

    module: nn.Module
    call: ast.Call | None = None
    x: ast.expr | None = None
    residual: ast.expr | None = None
    statement: ast.stmt | None = None


class Uses:
    """How the code of a model uses its batch norms and its Sequential modules.

    Attributes:
        calls: of each, by id: the ids of the module that makes the call, and of the node.
        others: ids of those that code uses in another way.
        held: how often each is held.
    """

    def __init__(self, found: Found) -> None:
        self.calls: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.others: set[int] = set()
        self.held: Counter[int] = Counter()
        self._wanted = {id(module) for module in found.modules if isinstance(module, _BatchNorm | nn.Sequential)}
        for module in found.modules:
            attributes = [value for name, value in vars(module).items() if name not in calls.STATE]
            self.held.update(map(id, (*module._modules.values(), *parts(attributes))))
        for code in found.code.values():
            for method in code.methods:
                self._read(Scope(method, code.module))

    def _read(self, scope: Scope) -> None:
        for node in ast.walk(scope.method.tree):
            if not isinstance(node, ast.Name | ast.Attribute | ast.Subscript | ast.Call):
                continue
            value = scope.resolve(node)
            if id(value) not in self._wanted:
                continue
            above = scope.method.parents.get(id(node))
            if isinstance(above, ast.Call) and above.func is node:
                self.calls[id(value)].append((id(scope.module), id(above)))
            elif not _is_harmless(scope, above, node, value):
                self.others.add(id(value))


def _is_harmless(scope: Scope, above: ast.AST | None, node: ast.AST, value: nn.Module) -> bool:
    """Whether code asks whether a module is there, or reads a parameter, a buffer or a flag of it."""
    if isinstance(above, ast.Attribute):
        return _is_state(value, above.attr)
    if isinstance(above, ast.Compare):
        return all(isinstance(one, ast.Is | ast.IsNot) for one in above.ops)
    if not isinstance(above, ast.Call):
        return getattr(above, "test", None) is node
    asked = scope.resolve(above.func)
    name = literal(above.args[1]) if asked in (getattr, hasattr) and len(above.args) > 1 else ""
    return asked in (isinstance, type) or (isinstance(name, str) and _is_state(value, name))


def _is_state(module: nn.Module, name: str) -> bool:
    value = attribute(module, name)
    return value is not UNKNOWN and not callable(value)


def before(call: Call, total: Sum | None, uses: Uses, whole: set[int]) -> Norm | str | None:
    """The batch norm that an activation takes; None where none is seen, else why both stay apart.

    Args:
        total: the sum that is fused with the activation.
        whole: the ids of the modules that code is seen to call.
    """
    results: list[Norm | str | None] = []
    if call.node is None:
        results = [_in_sequential(call, uses, whole)]
    elif call.x is not None:
        sides = [(call.x, None)] if total is None else [(total.x, total.residual), (total.residual, total.x)]
        results = [_in_code(call, total, x, residual) for x, residual in sides]
    norm = next((one for one in results if isinstance(one, Norm)), None)
    if norm is None:
        return next((one for one in results if one is not None), None)
    return _why_apart(call, norm, uses) or norm


def _why_apart(call: Call, norm: Norm, uses: Uses) -> str:
    module = norm.module
    kind, used = type(module), uses.calls[id(module)]
    own = [] if norm.call is None else [(id(call.owner), id(norm.call))]
    reasons = {
        f"its batch norm is a {kind.__name__}; expected just a BatchNorm1d, 2d or 3d of torch": kind not in WITH_CAPS,
        "the forward of its batch norm is set on the instance": "forward" in vars(module),
        "its batch norm has hooks": calls.has_hooks(module),
        "the activation has hooks": calls.has_hooks(calls.held(call.slot)),
        "its batch norm is held in more than one place": uses.held[id(module)] > 1,
        "other code uses its batch norm": used != own or id(module) in uses.others,
        "the call of the activation has other arguments, which may change": not _takes_only_x(call),
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def _takes_only_x(call: Call) -> bool:
    return call.is_certain or call.node is None or len(call.node.args) + len(call.node.keywords) == 1


def _in_sequential(call: Call, uses: Uses, whole: set[int]) -> Norm | str | None:
    holder, name = call.slot  # type: ignore[misc]
    if kinds.forward_of(holder) is not nn.Sequential.forward:
        return None
    names = list(holder._modules)
    index = names.index(name)
    module = holder._modules[names[index - 1]] if index else None
    if not is_batch_norm(module):
        return None
    if id(holder) not in whole or id(holder) in uses.others:
        return "their Sequential is not seen to be called only as a whole"
    return Norm(module)  # type: ignore[arg-type]


def is_batch_norm(module: Any) -> bool:
    """Whether it is a batch norm without an activation."""
    return isinstance(module, _BatchNorm) and not isinstance(module, BatchNormActivation)


def _in_code(call: Call, total: Sum | None, x: ast.expr, residual: ast.expr | None) -> Norm | str | None:
    scope = Scope(call.method, call.owner)  # type: ignore[arg-type]
    if isinstance(x, ast.Name):
        return _by_name(call, scope, total, x, residual)
    found = _norm_call(scope, x)
    if found is None:
        return None
    module, argument = found
    # The other operand of a sum may be computed between.
    is_between = total is not None and x is total.x and _runs([residual])
    if is_between and not _is_kept(call, scope, _place(call, total), argument, [residual]):
        return _BETWEEN
    return Norm(module, x, argument, residual)  # type: ignore[arg-type]


def _norm_call(scope: Scope, node: ast.AST) -> tuple[nn.Module, ast.expr] | None:
    """The batch norm that a call runs, and its argument."""
    if not isinstance(node, ast.Call) or len(node.args) != 1 or node.keywords or isinstance(node.args[0], ast.Starred):
        return None
    module = scope.resolve(node.func)
    return (module, node.args[0]) if is_batch_norm(module) else None


def _by_name(call: Call, scope: Scope, total: Sum | None, x: ast.Name, residual: ast.expr | None) -> Norm | str | None:
    """``x = norm(...)`` in a statement before the one that reads x."""
    block, index = _place(call, total)
    made = next((i for i in reversed(range(index)) if sums.count(block[i], x.id)), None)
    if made is None or not sums.assigns(block[made], x.id):
        return None
    statement, reader = block[made], block[index]
    found = _norm_call(scope, statement.value)  # type: ignore[attr-defined]
    if found is None:
        return None
    module, argument = found
    is_summed_in_place = isinstance(reader, ast.AugAssign) and sums.is_name(reader.target, x.id)
    if not is_summed_in_place and not sums.is_last_use(call, reader, x.id):
        return "the output of its batch norm has another reader"
    between = [*block[made + 1 : index], residual]
    if total is not None and total.statement is not None:
        between.append(reader.value)  # type: ignore[attr-defined]
    is_between = len(block[made + 1 : index]) > 0 or _runs(between) or sums.runs_before(call, reader)
    others = [*block[made + 1 : index], *([] if sums.is_name(argument, x.id) else [reader])]
    if is_between and not _is_kept(call, scope, (block, made), argument, others):
        return _BETWEEN
    if any(isinstance(part, _LEAVING) for one in block[made + 1 : index] for part in ast.walk(one)):
        return _BETWEEN
    return Norm(module, statement.value, x, residual, statement if sums.is_name(argument, x.id) else None)  # type: ignore[attr-defined]


def _place(call: Call, total: Sum | None) -> tuple[list[ast.stmt], int]:
    """The statements around the one that reads the batch norm's output, and its index."""
    block, index = sums.block_of(call)
    if total is not None and total.statement is not None:
        index = next(i for i, one in enumerate(block) if one is total.statement)
    return block, index


def _runs(nodes: Iterable[ast.AST | None]) -> bool:
    calling = (ast.Call, ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)
    return any(isinstance(part, calling) for node in nodes if node is not None for part in ast.walk(node))


def _is_kept(
    call: Call, scope: Scope, place: tuple[list[ast.stmt], int], argument: ast.expr, others: Iterable[ast.AST | None]
) -> bool:
    """Whether nothing that runs until the activation is called can write to what the batch norm gets."""
    if isinstance(argument, ast.Call):
        return sums.makes_fresh_memory(scope.resolve(argument.func))
    block, index = place
    if not isinstance(argument, ast.Name) or not sums.is_fresh(scope, block[:index], argument.id):
        return False
    return not any(sums.count(one, argument.id) for one in others if one is not None)
