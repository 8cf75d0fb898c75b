// The same for operands that lie anyhow: at any strides, at addresses that are not aligned.
#pragma once

#include "cuda/access.cuh"
#include "dreluop/fast_divmod.h"

namespace dreluop::cuda {

constexpr int kMaxDims = 64;

// Where element i lies. sizes[0] is not needed.
DRELUOP_DEVICE int64_t strided_offset(uint64_t i, int rank, const FastDivmod* sizes, const int64_t* strides) {
  int64_t result = 0;
#pragma unroll 1
  for (int d = rank - 1; d > 0; --d) {
    const uint64_t outer = sizes[d].quotient(i);
    result += static_cast<int64_t>(sizes[d].remainder(i, outer)) * strides[d];
    i = outer;
  }
  return result + static_cast<int64_t>(i) * strides[0];
}

enum class Kind : uint32_t { kPacked, kLinear, kStrided };

template <>
struct Operands<Access::kGeneral> {
  int rank;
  Kind kind[kOperands];
  void* data[kOperands];
  int64_t strides[kOperands][kMaxDims];
  FastDivmod sizes[kMaxDims];

  // The first n elements of a vector; the rest is zero.
  template <class Traits>
  DRELUOP_DEVICE typename Traits::Vec load(int k, int64_t i, int n) const {
    using T = typename Traits::T;
    if (kind[k] == Kind::kPacked && n == Traits::kVec) return read_words<Traits>(static_cast<const T*>(data[k]) + i);
    T* scratch = scratch_of_thread<T>();
#pragma unroll 1
    for (int e = 0; e < Traits::kVec; ++e) scratch[e] = e < n ? at<Traits>(k, i + e) : T(0);
    return read_words<Traits>(scratch);
  }
  template <class Traits>
  DRELUOP_DEVICE void store(int k, int64_t i, int n, const typename Traits::Values& values) const {
    using T = typename Traits::T;
    if (kind[k] == Kind::kPacked && n == Traits::kVec) {
      write_words<Traits>(static_cast<T*>(data[k]) + i, values);
      return;
    }
    T* scratch = scratch_of_thread<T>();
    *reinterpret_cast<typename Traits::Values*>(scratch) = values;
#pragma unroll 1
    for (int e = 0; e < n; ++e) at<Traits>(k, i + e) = scratch[e];
  }
  template <class Traits>
  DRELUOP_DEVICE typename Traits::T& at(int k, int64_t i) const {
    auto* const first = static_cast<typename Traits::T*>(data[k]);
    return first[kind[k] == Kind::kStrided ? strided_offset(static_cast<uint64_t>(i), rank, sizes, strides[k]) : i];
  }
};

// Calls f(i, n) for this thread's vectors, one after another: from element i, its first n elements.
template <class Traits, class F>
DRELUOP_DEVICE void for_each_vec(int64_t block, int per_thread, int64_t numel, const F& f) {
  const int64_t first = block * (kFlatThreads * per_thread) + threadIdx.x;
#pragma unroll 1
  for (int u = 0; u < per_thread; ++u) {
    const int64_t i = (first + u * kFlatThreads) * Traits::kVec;
    if (i < numel) f(i, static_cast<int>(min(numel - i, int64_t{Traits::kVec})));
  }
}

}  // namespace dreluop::cuda
