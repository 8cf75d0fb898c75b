"""Operators: schemas, their fakes, their derivatives, and what implements them. Importing this registers everything."""

from dreluop.ops import schemas  # isort: skip
from dreluop.backends import reference

for _name in schemas.SCHEMAS:
    # By the default rule, this serves every device that no other backend has registered a kernel for.
    for _which in (schemas.DEFAULT, "reference"):
        schemas.library.impl(schemas.overload(_name, _which), getattr(reference, _name), "CompositeExplicitAutograd")

from dreluop.backends import choice, native, triton  # noqa: E402
from dreluop.ops import calls, derivatives, fakes, functionalized, fused, negated  # noqa: E402
from dreluop.ops.plain import decompositions  # noqa: E402

__all__ = [
    "calls",
    "choice",
    "decompositions",
    "derivatives",
    "fakes",
    "functionalized",
    "fused",
    "native",
    "negated",
    "reference",
    "schemas",
    "triton",
]
