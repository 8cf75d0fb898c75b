// The passes over an activation on the CPU. Torch-free: pointers, sizes, strides, and a way to run a loop in parallel.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "cpu/operand.h"
#include "dreluop/dtype_traits.h"
#include "dreluop/layout.h"
#include "dreluop/plan.h"

namespace dreluop::cpu {

// Runs body(begin, end) over [0, n) in segments of at least `grain`, in any order, on any threads. Bodies do not throw.
using Body = std::function<void(int64_t begin, int64_t end)>;
using ParallelFor = void (*)(int64_t n, int64_t grain, const Body& body);

struct Problem {
  DType dtype;  // of x, y and gradients
  int64_t numel;
  CapLayout layout;
  const void* caps;  // layout.caps values of dtype, in traversal order
  ParallelFor parallel_for;
};

// What forward left for backward: y, or the packed mask in traversal order.
struct Saved {
  std::optional<Operand> y;
  const uint8_t* mask = nullptr;
};

// Added to x before the activation: (x + bias) + residual, in float (double for double), rounded once. Either may be
// absent. bias: layout.caps values in traversal order, double for kFloat64, else float.
struct BiasAndResidual {
  const void* bias = nullptr;
  const Operand* residual = nullptr;
};

// y may be x. The mask, if wanted, has ceil(numel / 4) bytes.
void forward(const Problem& problem, const Operand& x, const BiasAndResidual& added, const Operand& y, uint8_t* mask);

// dx, dcap and dbias (layout.caps sums each, in traversal order) are each left out if null. dbias sums dx. Sums are
// good to float (double where x is), or to double if `sums_in_double`.
void backward(const Problem& problem, const Operand& grad, const Saved& saved, const Operand* dx, double* dcap,
              double* dbias, bool sums_in_double);

// v: layout.caps values of dtype in traversal order, or null for zero.
void tangent(const Problem& problem, const Operand& u, const void* v, const Saved& saved, const Operand& out);

// The derivatives of attacks (dreluop/surrogate.h). Without widths, dx = grad where y, or the mask, is on, else 0. With
// them (layout.caps values in traversal order, double for kFloat64, else float) `saved.y` is x before the cap, and dx
// is grad times the smoothed slope.
void surrogate(const Problem& problem, const Operand& grad, const Saved& saved, const void* widths, const Operand& dx);

// Which sample an element belongs to: (i / inner) % samples.
struct SampleLayout {
  int64_t samples;
  int64_t inner;
};

// inside and capped: layout.caps counts in traversal order, zeroed by the caller; has_gradient: one byte per sample,
// zeroed.
void saturation(const Problem& problem, const Operand& x, const SampleLayout& sample, int64_t* inside, int64_t* capped,
                uint8_t* has_gradient);

}  // namespace dreluop::cpu
