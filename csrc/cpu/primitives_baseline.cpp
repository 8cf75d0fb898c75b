#define DRELUOP_ISA baseline
#include "cpu/primitives.inc"
// After the helpers that it uses.
#include "cpu/batch_norm_loops.inc"
