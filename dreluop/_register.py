"""Registers the operators with torch. The only file that knows in which order.

Importing ``ops.schemas`` defines them, and importing ``backends.native`` loads the compiled kernels.
"""

from dreluop.autograd import dispatcher, functionalize, negative
from dreluop.backends import reference, selection
from dreluop.ops import batch_norm, fakes, inductor

reference.register()
batch_norm.register()
selection.register()
dispatcher.register()
fakes.register()
functionalize.register()
inductor.register()
negative.register()
