// The passes over an activation on a CUDA device. No CUDA header is needed to include this.
//
// Every launcher is asynchronous on the given stream, safe under CUDA-graph capture, and launches one kernel (before
// it a memset of the counters where there are any), but for those of batch norm. What it cannot serve it refuses
// with std::invalid_argument before any launch; what CUDA refuses is in the Status. Two runs on one device give the
// same bits.
#pragma once

#include "dreluop/passes.h"

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
// itself sets to zero on the stream.
struct Workspace {
  size_t bytes = 0;
  size_t zeroed = 0;
};

struct Problem : Activation {
  int multiprocessors = 1;
  void* stream = nullptr;
};

Workspace forward_workspace(const Problem& problem, const Forward& pass);
Status forward(const Problem& problem, const Forward& pass, void* workspace);
Workspace backward_workspace(const Problem& problem, const Backward& pass);
Status backward(const Problem& problem, const Backward& pass, void* workspace);
Status jvp(const Problem& problem, const Jvp& pass);
Status surrogate(const Problem& problem, const Surrogate& pass);
Status saturation(const Problem& problem, const Saturation& pass);

// A kernel for the moments of x or the sums of gradients, where they are wanted, and one for y or the gradients;
// forward launches one more where several vectors share a byte of the mask. Caps of one dimension only, that of the
// channels.
Workspace batch_norm_workspace(const Problem& problem, const BatchNorm& pass);
Status batch_norm(const Problem& problem, const BatchNorm& pass, void* workspace);
Workspace batch_norm_backward_workspace(const Problem& problem, const BatchNormBackward& pass);
Status batch_norm_backward(const Problem& problem, const BatchNormBackward& pass, void* workspace);

// balancer * sum of squares over all tensors. One kernel for up to kCapsPerLaunch tensors, one more for every further
// kCapsPerLaunch.
constexpr int kCapsPerLaunch = 160;
Workspace penalty_workspace(const std::vector<CapTensor>& caps);
Status penalty(const std::vector<CapTensor>& caps, double balancer, Scalar result, void* workspace, void* stream);

// gradients[i] = 2 * balancer * grad * caps[i]; a gradient has its cap's sizes and dtype.
Status penalty_backward(const std::vector<CapTensor>& caps, const std::vector<CapTensor>& gradients, double balancer,
                        Scalar grad, void* stream);

}  // namespace dreluop::cuda
