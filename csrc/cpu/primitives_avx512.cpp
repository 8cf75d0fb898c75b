#if defined(__x86_64__)
#define DRELUOP_ISA avx512
#include "cpu/primitives.inc"
// After the helpers that it uses.
#include "cpu/batch_norm_loops.inc"
#endif
