// The passes over an activation, as the kernels of both devices receive them: pointers, sizes and strides; no torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dreluop/dtype_traits.h"
#include "dreluop/layout.h"

namespace dreluop {

// What all operands of one call share. Dimensions are in traversal order (dreluop::Traversal), outermost first.
struct Activation {
  DType dtype = DType::kFloat32;  // of x, y, residual and their gradients
  int rank = 0;
  const int64_t* sizes = nullptr;
  CapLayout layout;
  int cap_rank = 0;  // dimensions of the caps, in traversal order; their product is layout.caps
  const int64_t* cap_sizes = nullptr;
  // A single cap where the layout is per channel because of a bias: the cap is read at stride 0, and its gradient is
  // one value, the sum over the channels.
  bool shared_cap = false;

  int64_t numel() const { return layout.outer * layout.caps * layout.inner; }
  // Caps in memory: a shared one counts once.
  int64_t distinct_caps() const { return shared_cap ? std::min<int64_t>(1, layout.caps) : layout.caps; }
};

// A tensor of the activation's sizes; strides in elements, in traversal order. Absent where data is null.
struct Operand {
  void* data = nullptr;
  const int64_t* strides = nullptr;
};

// One value per cap: cap, bias, width, tangent of the cap, or a gradient of these; strides in elements for cap_sizes.
// CUDA: at most eight dimensions may remain once those that lie densely are merged.
struct PerCap {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  const int64_t* strides = nullptr;
};

// A number in the memory of the device.
struct Scalar {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
};

// t = (x + bias) + residual in fp32 (fp64 for fp64; the bias is rounded to that first), rounded once to x's dtype;
// y = max(0, min(t, cap)), with what `zeroed` names made +0. y may be x, and may be residual. The mask has ceil(numel /
// 4) bytes. The penalty is balancer * sum of squares of the caps.
struct Forward {
  Operand x, y, residual;
  PerCap cap, bias;
  uint8_t* mask = nullptr;
  Scalar penalty;
  double balancer = 0;
  Zeroed zeroed = kZeroNothing;
};

// From grad and y or the mask: dx, the gradient of the cap and that of the bias (the sum of dx), each left out where
// its data is null. dx may be grad, if they have the same strides. Where grad_penalty is given,
// 2 * balancer * grad_penalty * cap is added to dcap. `cap` may be left out with a mask and no grad_penalty. `zeroed`
// is that of forward.
struct Backward {
  Operand grad, y, dx;
  const uint8_t* mask = nullptr;
  PerCap cap, dcap, dbias;
  Scalar grad_penalty;
  double balancer = 0;
  Zeroed zeroed = kZeroNothing;
};

// out = u where inside, v where capped, else 0; v is rounded to x's dtype, and zero where absent.
struct Jvp {
  Operand u, y, out;
  const uint8_t* mask = nullptr;
  PerCap cap, v;
  Zeroed zeroed = kZeroNothing;
};

// The derivatives of attacks (dreluop/surrogate.h). Without a width, dx = grad where the saved output, or the mask, is
// on, else 0. With one, y is x before the cap, there is no mask, and dx is grad times the smoothed slope.
struct Surrogate {
  Operand grad, y, dx;
  const uint8_t* mask = nullptr;
  PerCap cap, width;
};

// counts: three int64 numbers per cap (off, inside, capped), `caps` apart, the caps within each third at the given
// strides for cap_sizes. has_gradient: one byte per sample, 1 if any of its elements is inside. Element i belongs to
// sample (i / sample_inner) % samples. Both are zeroed first.
struct Saturation {
  Operand x;
  PerCap cap;
  int64_t* counts = nullptr;
  const int64_t* counts_strides = nullptr;
  uint8_t* has_gradient = nullptr;
  int64_t samples = 1;
  int64_t sample_inner = 1;
};

// t = ((x - mean) * scale + bias) + residual with scale = weight / sqrt(var + eps) per channel, each step in fp32 (fp64
// for fp64) and rounded once to x's dtype; y = max(0, min(t, cap)). Where `trains`, mean and var (biased) are computed
// from x and written, else read. Weight and bias may be absent: 1 and 0.
struct BatchNorm {
  Operand x, y, residual;
  PerCap weight, bias, cap, mean, var;
  double eps = 0;
  bool trains = true;
  uint8_t* mask = nullptr;
};

// Its gradients, each left out where its data is null; t is computed again, by the same steps, where there is no mask.
// The gradient of the residual is that of t.
struct BatchNormBackward {
  Operand grad, x, dx, dresidual;
  PerCap weight, bias, cap, mean, var, dweight, dbias, dcap;
  double eps = 0;
  bool trains = true;
  const uint8_t* mask = nullptr;
};

// A tensor of caps by itself, in any order. CUDA: at most four dimensions may remain once merged.
struct CapTensor {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int rank = 0;
  const int64_t* sizes = nullptr;
  const int64_t* strides = nullptr;

  int64_t numel() const {
    return std::accumulate(sizes, sizes + rank, int64_t{1}, [](int64_t a, int64_t b) { return a * b; });
  }
};

}  // namespace dreluop
