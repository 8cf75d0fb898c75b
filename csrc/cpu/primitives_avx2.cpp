#if defined(__x86_64__)
#define DRELUOP_ISA avx2
#include "cpu/primitives.inc"
#endif
