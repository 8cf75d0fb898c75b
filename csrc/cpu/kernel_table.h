// The passes of the fast path, handed from the library that has the kernels to the one that has the autograd node.
#pragma once

#include "cpu/kernels.h"

namespace dreluop::cpu {

struct KernelTable {
  // What both libraries must be built from alike.
  size_t size_of_problem = sizeof(Problem), size_of_forward = sizeof(Forward), size_of_backward = sizeof(Backward);
  ParallelFor parallel_for = nullptr;
  void (*forward)(const Problem&, const Forward&) = nullptr;
  void (*backward)(const Problem&, const Backward&) = nullptr;

  bool fits() const {
    const KernelTable own;
    return size_of_problem == own.size_of_problem && size_of_forward == own.size_of_forward &&
           size_of_backward == own.size_of_backward;
  }
};

}  // namespace dreluop::cpu
