"""dtypes as Triton names them."""

import triton.language as tl

# By whether sums are wanted in fp64.
ACCUMULATORS = {False: tl.float32, True: tl.float64}
