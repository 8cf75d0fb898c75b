// The penalty over many tensors of caps, and its gradient. The tensors' addresses travel in the kernel's parameters.
#include "cuda/arguments.h"
#include "cuda/penalty.cuh"

namespace dreluop::cuda {

constexpr int kTensorDims = 4;
constexpr int kSegmentOfCaps = 4096;  // of one block
constexpr int kFewTensors = 16;

struct ListedTensor {
  int64_t first_segment;
  int64_t numel;
  void* data;
  void* gradient;
  DType dtype;
  int rank;
  int64_t sizes[kTensorDims];
  int64_t strides[kTensorDims];
  int64_t gradient_strides[kTensorDims];

  DRELUOP_DEVICE int64_t offset(const int64_t (&by)[kTensorDims], int64_t i) const {
    int64_t result = 0;
#pragma unroll 1
    for (int d = rank - 1; d > 0; --d) {
      result += i % sizes[d] * by[d];
      i /= sizes[d];
    }
    return result + i * by[0];
  }
};

template <int kTensors>
struct PenaltyListParameters {
  int count;
  int64_t segments;
  double factor;
  Scalar scalar;         // the result, or the gradient coming in
  Sum<double>* carried;  // what earlier launches summed; null for the first
  Sum<double>* carry;    // where to leave this one's sum; null for the last
  Sum<double>* partials;
  unsigned* counter;
  ListedTensor tensors[kTensors];

  // Calls f(tensor, i) for this thread's elements of segment blockIdx.x.
  template <class F>
  DRELUOP_DEVICE void for_each(const F& f) const {
    if (blockIdx.x >= segments) return;
    int k = 0;
    while (k + 1 < count && tensors[k + 1].first_segment <= blockIdx.x) ++k;
    const ListedTensor& tensor = tensors[k];
    const int64_t begin = (blockIdx.x - tensor.first_segment) * kSegmentOfCaps;
    const int64_t end = min(tensor.numel, begin + kSegmentOfCaps);
    for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) f(tensor, i);
  }
};

template <int kTensors>
__global__ void __launch_bounds__(kFlatThreads)
    penalty_kernel(const __grid_constant__ PenaltyListParameters<kTensors> p) {
  Sum<double> sum;
  p.for_each([&](const ListedTensor& tensor, int64_t i) {
    const double m = read_number<double>(tensor.data, tensor.dtype, tensor.offset(tensor.strides, i));
    sum.add(m * m);
  });
  Sum<double> total;
  if (!reduce_across_blocks(sum, blockIdx.x, gridDim.x, p.partials, p.counter, &total)) return;
  if (p.carried != nullptr) total.add(*p.carried);
  if (p.carry != nullptr)
    *p.carry = total;
  else
    write_number(p.scalar.data, p.scalar.dtype, 0, p.factor * total.total());
}

template <int kTensors>
__global__ void __launch_bounds__(kFlatThreads)
    penalty_backward_kernel(const __grid_constant__ PenaltyListParameters<kTensors> p) {
  const double scale = p.factor * read_number<double>(p.scalar.data, p.scalar.dtype, 0);
  p.for_each([&](const ListedTensor& tensor, int64_t i) {
    const double m = read_number<double>(tensor.data, tensor.dtype, tensor.offset(tensor.strides, i));
    write_number(tensor.gradient, tensor.dtype, tensor.offset(tensor.gradient_strides, i), scale * m);
  });
}

namespace {

int64_t segments_of(const CapTensor& tensor) { return up_to(tensor.numel(), kSegmentOfCaps); }

// Workspace of the penalty: a counter per launch, the sum carried from launch to launch, a partial sum per block.
struct PenaltySpace {
  explicit PenaltySpace(const std::vector<CapTensor>& caps) : launches(up_to(caps.size(), kCapsPerLaunch)) {
    for (size_t first = 0; first < caps.size(); first += kCapsPerLaunch) {
      int64_t segments = 0;
      for (size_t k = first; k < std::min(caps.size(), first + kCapsPerLaunch); ++k) segments += segments_of(caps[k]);
      most_segments = std::max(most_segments, segments);
    }
    counter_bytes = (static_cast<size_t>(launches) * sizeof(unsigned) + 15) / 16 * 16;
  }
  Workspace workspace() const {
    if (launches == 1 && most_segments <= 1) return {};
    return {counter_bytes + (1 + static_cast<size_t>(most_segments)) * sizeof(Sum<double>), counter_bytes};
  }

  int64_t launches = 0;
  int64_t most_segments = 0;
  size_t counter_bytes = 0;
};

void check_list(const std::vector<CapTensor>& caps) {
  if (caps.empty()) refuse("caps: got no tensor; expected at least one");
}

// Tensors [first, last) with, for the backward pass, their gradients.
template <int kTensors>
PenaltyListParameters<kTensors> list(const std::vector<CapTensor>& caps, const std::vector<CapTensor>* gradients,
                                     size_t first, size_t last, double factor, Scalar scalar) {
  PenaltyListParameters<kTensors> p{};
  p.count = static_cast<int>(last - first);
  p.factor = factor;
  p.scalar = scalar;
  for (size_t k = first; k < last; ++k) {
    ListedTensor& to = p.tensors[k - first];
    to.first_segment = p.segments;
    to.data = caps[k].data;
    to.dtype = caps[k].dtype;
    to.numel = caps[k].numel();
    if (gradients != nullptr) to.gradient = (*gradients)[k].data;
    const int64_t* const strides[] = {caps[k].strides, gradients != nullptr ? (*gradients)[k].strides : nullptr};
    int64_t merged_strides[2][kTensorDims];
    to.rank = merge_dimensions(caps[k].rank, caps[k].sizes, strides, to.sizes, merged_strides, "caps");
    std::copy_n(merged_strides[0], to.rank, to.strides);
    std::copy_n(merged_strides[1], to.rank, to.gradient_strides);
    p.segments += segments_of(caps[k]);
  }
  return p;
}

// Calls f(first, last, most) for the tensors of each launch, `most` a constant: a short list of parameters for a few.
template <class F>
Status for_each_launch(size_t count, Status status, const F& f) {
  for (size_t first = 0; status.ok() && first < count; first += kCapsPerLaunch) {
    const size_t last = std::min(count, first + kCapsPerLaunch);
    status = last - first <= kFewTensors ? f(first, last, std::integral_constant<int, kFewTensors>())
                                         : f(first, last, std::integral_constant<int, kCapsPerLaunch>());
  }
  return status;
}

}  // namespace

Workspace penalty_workspace(const std::vector<CapTensor>& caps) {
  check_list(caps);
  return PenaltySpace(caps).workspace();
}

Status penalty(const std::vector<CapTensor>& caps, double balancer, Scalar result, void* workspace, void* stream) {
  check_list(caps);
  const PenaltySpace space(caps);
  auto* sums = reinterpret_cast<Sum<double>*>(static_cast<unsigned char*>(workspace) + space.counter_bytes);
  const Status zeroed = zero(workspace, space.workspace().zeroed, stream);
  return for_each_launch(caps.size(), zeroed, [&](size_t first, size_t last, auto most) {
    constexpr int kTensors = decltype(most)::value;
    auto p = list<kTensors>(caps, nullptr, first, last, balancer, result);
    if (first > 0) p.carried = sums;
    if (last < caps.size()) p.carry = sums;
    p.partials = sums + 1;
    p.counter = static_cast<unsigned*>(workspace) + first / kCapsPerLaunch;
    return launch("dreluop penalty", penalty_kernel<kTensors>, checked_blocks(std::max<int64_t>(1, p.segments)),
                  kFlatThreads, kScratchOfBlock, stream, p);
  });
}

Status penalty_backward(const std::vector<CapTensor>& caps, const std::vector<CapTensor>& gradients, double balancer,
                        Scalar grad, void* stream) {
  check_list(caps);
  if (gradients.size() != caps.size()) refuse("gradients: expected one per cap");
  return for_each_launch(caps.size(), {}, [&](size_t first, size_t last, auto most) {
    constexpr int kTensors = decltype(most)::value;
    const auto p = list<kTensors>(caps, &gradients, first, last, 2 * balancer, grad);
    return launch("dreluop penalty backward", penalty_backward_kernel<kTensors>, checked_blocks(p.segments),
                  kFlatThreads, 0, stream, p);
  });
}

}  // namespace dreluop::cuda
