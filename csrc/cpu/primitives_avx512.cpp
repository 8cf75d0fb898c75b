#if defined(__x86_64__)
#define DRELUOP_ISA avx512
#include "cpu/primitives.inc"
#endif
