// The penalty over many tensors of caps, and its gradient. The tensors' addresses travel in the kernel's parameters.
#pragma once

#include "cuda/cap_penalty.cuh"

namespace dreluop::cuda {

constexpr int kTensorDims = 4;
constexpr int kSegmentOfCaps = 4096;  // of one block
constexpr int kFewTensors = 16;       // so many need a short list of parameters only

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

}  // namespace dreluop::cuda
