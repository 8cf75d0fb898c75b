// The passes over an activation on a CUDA device. Torch-free, and no CUDA header is needed to include this: pointers to
// device memory, sizes, strides, a stream.
//
// Every launcher is asynchronous on the given stream, safe under CUDA-graph capture, and launches one kernel (before it
// a memset of the counters where there are any). What it cannot serve it refuses with std::invalid_argument before any
// launch; what CUDA refuses is in the Status. Two runs on one device give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dreluop/dtype_traits.h"
#include "dreluop/layout.h"

namespace dreluop::cuda {

// A cudaError_t, and what was being launched when it came up.
struct Status {
  int error = 0;
  const char* kernel = "";

  bool ok() const { return error == 0; }
};

const char* error_text(int error);

// Multiprocessors of a device, asked once; 0 and the error if CUDA refuses.
int multiprocessors(int device, Status* status);

// Device memory that a launcher needs, 16-byte aligned. Its first `zeroed` bytes are counters, which the launcher
// itself cap_tiles to zero on the stream.
struct Workspace {
  size_t bytes = 0;
  size_t zeroed = 0;
};

// What all operands of one call share. DimVector are listed in traversal order (dreluop::Traversal), outermost first.
struct Problem {
  DType dtype;  // of x, y, residual and their gradients
  int rank = 0;
  const int64_t* sizes = nullptr;
  CapLayout layout;
  int cap_rank = 0;  // dimensions of the caps, in traversal order; their product is layout.caps
  const int64_t* cap_sizes = nullptr;
  // A single cap where the layout is per channel because of a bias: the cap is read at stride 0, and its gradient is
  // one value, the sum over the channels.
  bool shared_cap = false;
  int multiprocessors = 1;
  void* stream = nullptr;
};

// A tensor of the problem's sizes; strides in elements, in traversal order. Absent where data is null.
struct Operand {
  void* data = nullptr;
  const int64_t* strides = nullptr;
};

// One value per cap: cap, bias, tangent of the cap, or a gradient of these; strides in elements for cap_sizes. At most
// eight dimensions may remain once those that lie densely are merged.
struct PerCap {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  const int64_t* strides = nullptr;
};

// A number in device memory, float or double.
struct Scalar {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
};

// t = (x + bias) + residual in fp32 (fp64 for fp64; the bias is rounded to that first), rounded once to x's dtype;
// y = max(0, min(t, cap)). y may be x, and may be residual. The mask has ceil(numel / 4) bytes. The penalty is
// balancer * sum of squares of the caps.
struct Forward {
  Operand x, y, residual;
  PerCap cap, bias;
  uint8_t* mask = nullptr;
  Scalar penalty;
  double balancer = 0;
};
Workspace forward_workspace(const Problem& problem, const Forward& pass);
Status forward(const Problem& problem, const Forward& pass, void* workspace);

// From grad and y or the mask: dx, the gradient of the cap and that of the bias (the sum of dx), each left out where
// its data is null. dx may be grad, if they have the same strides. Where grad_penalty is given,
// 2 * balancer * grad_penalty * cap is added to dcap. `cap` may be left out with a mask and no grad_penalty.
struct Backward {
  Operand grad, y, dx;
  const uint8_t* mask = nullptr;
  PerCap cap, dcap, dbias;
  Scalar grad_penalty;
  double balancer = 0;
};
Workspace backward_workspace(const Problem& problem, const Backward& pass);
Status backward(const Problem& problem, const Backward& pass, void* workspace);

// out = u where inside, v where capped, else 0; v is rounded to x's dtype, and zero where absent.
struct Tangent {
  Operand u, y, out;
  const uint8_t* mask = nullptr;
  PerCap cap, v;
};
Status tangent(const Problem& problem, const Tangent& pass);

// The derivatives of attacks (dreluop/surrogate.h). Without a width, dx = grad where the saved output, or the mask, is
// on, else 0. With one, `saved` is x before the cap, there is no mask, and dx is grad times the smoothed slope.
struct Surrogate {
  Operand grad, saved, dx;
  const uint8_t* mask = nullptr;
  PerCap cap, width;
};
Status surrogate(const Problem& problem, const Surrogate& pass);

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
Status saturation(const Problem& problem, const Saturation& pass);

// A tensor of caps by itself, in any order; at most four dimensions may remain once merged.
struct CapTensor {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int rank = 0;
  const int64_t* sizes = nullptr;
  const int64_t* strides = nullptr;
};

// balancer * sum of squares over all tensors. One kernel for up to kCapsPerLaunch tensors, one more for every further
// kCapsPerLaunch.
constexpr int kCapsPerLaunch = 160;
Workspace penalty_workspace(const std::vector<CapTensor>& caps);
Status penalty(const std::vector<CapTensor>& caps, double balancer, Scalar result, void* workspace, void* stream);

// gradients[i] = 2 * balancer * grad * caps[i]; grad is float or double; a gradient has its cap's sizes and dtype.
Status penalty_backward(const std::vector<CapTensor>& caps, const std::vector<CapTensor>& gradients, double balancer,
                        Scalar grad, void* stream);

}  // namespace dreluop::cuda
