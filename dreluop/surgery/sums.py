"""The residual sum before an activation, where both can become one pass."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dreluop.surgery import kinds
from dreluop.surgery.calls import Call
from dreluop.surgery.resolving import Scope

# Their outputs are new memory, so an in-place sum overwrites nothing that others hold.
_FRESH = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.Linear, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Sum:
    """``x + residual`` that feeds one activation only.

    Attributes:
        inplace: the sum was written over x.
        statement: the statement that makes the sum, if it is not in the call itself.
    """

    x: ast.expr
    residual: ast.expr
    inplace: bool = False
    statement: ast.stmt | None = None


def before(call: Call) -> Sum | str | None:
    """The sum that an activation takes; None where its input is no sum of two tensors, else why it cannot be fused."""
    if call.method is None or call.x is None:
        return None
    scope = Scope(call.method, call.owner)
    sides = scope.operands(call.x)
    if sides is not None:
        total: Sum | str | None = Sum(*sides)
    else:
        total = _sum_by_name(call, scope, call.x.id) if isinstance(call.x, ast.Name) else None
    if not isinstance(total, Sum):
        return total
    values = [scope.resolve(part) for part in (total.x, total.residual)]
    if any(isinstance(value, bool | int | float) for value in values):
        return None
    return "an operand is a parameter or buffer" if any(isinstance(value, Tensor) for value in values) else total


def _sum_by_name(call: Call, scope: Scope, name: str) -> Sum | str | None:
    """``name = x + y`` or ``name += y`` in a statement before the one with the call."""
    block, index = block_of(call)
    made = next((i for i in reversed(range(index)) if count(block[i], name)), None)
    if made is None:
        return None
    statement = block[made]
    if isinstance(statement, ast.AugAssign) and isinstance(statement.op, ast.Add) and is_name(statement.target, name):
        total = Sum(ast.Name(name, ast.Load()), statement.value, True, statement)
    elif assigns(statement, name) and (sides := scope.operands(statement.value)):  # type: ignore[attr-defined]
        total = Sum(*sides, False, statement)
    else:
        return None
    if made != index - 1 or runs_before(call, block[index]):
        return "other operations run between the sum and the activation"
    if not is_last_use(call, block[index], name):
        return "the sum has another user"
    if total.inplace and (count(total.residual, name) or not is_fresh(scope, block[:made], name)):
        return "the sum is written over a tensor that may be seen elsewhere"
    return total


def block_of(call: Call) -> tuple[list[ast.stmt], int]:
    """The statements around the call's, and its index among them; none if the call runs only in some cases."""
    assert call.method is not None
    node: ast.AST = call.node  # type: ignore[assignment]
    while not isinstance(node, ast.stmt):
        if isinstance(node, ast.Lambda | ast.comprehension | ast.GeneratorExp | ast.ListComp | ast.IfExp | ast.BoolOp):
            return [], 0
        node = call.method.parents[id(node)]
    for _, block in ast.iter_fields(call.method.parents[id(node)]):
        if isinstance(block, list) and any(part is node for part in block):
            return block, next(i for i, part in enumerate(block) if part is node)
    return [], 0


def is_last_use(call: Call, statement: ast.stmt, name: str) -> bool:
    """Whether only the call reads the sum: its statement reads it once, and rebinds the name or is the last use."""
    assert call.method is not None
    rebound = assigns(statement, name)
    tree = call.method.tree
    if count(statement, name) != 1 + rebound or name in call.method.function.__code__.co_cellvars:
        return False
    # Two statements may stand on one line.
    end = _end(statement)
    later = any(is_name(node, name) and _start(node) >= end for node in ast.walk(tree))
    above: ast.AST | None = statement
    in_loop = read_finally = False
    while above is not None:
        in_loop |= isinstance(above, ast.For | ast.While)
        read_finally |= any(count(part, name) for part in getattr(above, "finalbody", ()))
        above = call.method.parents.get(id(above))
    if count(tree, "locals"):
        return False
    return rebound or (isinstance(statement, ast.Return) and not read_finally) or not (in_loop or later)


def runs_before(call: Call, statement: ast.stmt) -> bool:
    """Whether the statement computes something before the call that may change an operand, or draw random numbers."""
    start = _start(call.node)  # type: ignore[arg-type]
    parts = (part for part in ast.walk(statement) if isinstance(part, ast.Call | ast.NamedExpr | ast.Await | ast.Yield))
    return any(_end(part) <= start for part in parts)


def _start(node: ast.AST) -> tuple[int, int]:
    return node.lineno, node.col_offset  # type: ignore[attr-defined]


def _end(node: ast.AST) -> tuple[int, int]:
    return node.end_lineno, node.end_col_offset  # type: ignore[attr-defined]


def is_fresh(scope: Scope, before_sum: list[ast.stmt], name: str) -> bool:
    last = next((one for one in reversed(before_sum) if count(one, name)), None)
    if last is None or not assigns(last, name) or not isinstance(last.value, ast.Call):  # type: ignore[attr-defined]
        return False
    return makes_fresh_memory(scope.resolve(last.value.func))  # type: ignore[attr-defined]


def makes_fresh_memory(module: Any) -> bool:
    if not isinstance(module, nn.Module):
        return False
    if kinds.forward_of(module) is nn.Sequential.forward:
        return len(module) > 0 and makes_fresh_memory(module[-1])  # type: ignore[arg-type, index]
    return isinstance(module, _FRESH)


def assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and len(node.targets) == 1 and is_name(node.targets[0], name)


def is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def count(node: ast.AST, name: str) -> int:
    return sum(is_name(part, name) for part in ast.walk(node))
