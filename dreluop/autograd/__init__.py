"""The activation in torch's autograd: Functions, the dispatcher's kernels, and the C++ fast path."""
