#define DRELUOP_ISA baseline
#include "cpu/primitives.inc"
