// The passes over an activation on the CPU, with a way to run a loop in parallel.
#pragma once

#include <functional>

#include "dreluop/passes.h"

namespace dreluop::cpu {

// Runs body(begin, end) over [0, n) in segments of at least `grain`, in any order, on any threads. Bodies do not throw.
using Body = std::function<void(int64_t begin, int64_t end)>;
using ParallelFor = void (*)(int64_t n, int64_t grain, const Body& body);

struct Problem : Activation {
  ParallelFor parallel_for = nullptr;
};

// Sums over elements are good to float (double where x is), or to double where one of caps or bias is double.
void forward(const Problem& problem, const Forward& pass);
void backward(const Problem& problem, const Backward& pass);
void jvp(const Problem& problem, const Jvp& pass);
void surrogate(const Problem& problem, const Surrogate& pass);
void saturation(const Problem& problem, const Saturation& pass);
// With a cap per channel or one in all (shared_cap); the layout is per channel.
void batch_norm(const Problem& problem, const BatchNorm& pass);
void batch_norm_backward(const Problem& problem, const BatchNormBackward& pass);

// balancer * sum of squares over all tensors.
void penalty(const std::vector<CapTensor>& caps, double balancer, Scalar result);

// gradients[i] = 2 * balancer * grad * caps[i]; a gradient is contiguous and has its cap's sizes and dtype.
void penalty_backward(const std::vector<CapTensor>& caps, const std::vector<CapTensor>& gradients, double balancer,
                      Scalar grad);

}  // namespace dreluop::cpu
