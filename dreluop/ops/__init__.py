"""Operators: schemas, their fakes, their derivatives, and what implements them. Importing this registers everything."""

from dreluop.ops import schemas  # isort: skip
from dreluop.backends import reference

for _name in schemas.SCHEMAS:
    # Serves every device that no other backend has registered a kernel for.
    schemas.library.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")

from dreluop.backends import native  # noqa: E402
from dreluop.ops import calls, derivatives, fakes  # noqa: E402

__all__ = ["calls", "derivatives", "fakes", "native", "reference", "schemas"]
