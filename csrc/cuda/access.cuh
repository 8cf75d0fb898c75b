// Reading and writing vectors of elements in traversal order.
#pragma once

#include "cuda/kernel_traits.cuh"

namespace dreluop::cuda {

template <class Traits>
DRELUOP_DEVICE typename Traits::Vec read_words(const typename Traits::T* from) {
  typename Traits::Vec vec;
#pragma unroll
  for (size_t k = 0; k < sizeof(vec) / sizeof(uint4); ++k) vec.v[k] = reinterpret_cast<const uint4*>(from)[k];
  return vec;
}

// To global memory.
template <class Traits>
DRELUOP_DEVICE void write_words(typename Traits::T* to, const typename Traits::Values& values) {
  const auto vec = bit_cast<typename Traits::Vec>(values);
#pragma unroll
  for (size_t k = 0; k < sizeof(vec) / sizeof(uint4); ++k) store_word(reinterpret_cast<uint4*>(to) + k, vec.v[k]);
}

constexpr int kOperands = 4;

// Scratch space for one vector at the calling thread's disposal: what is indexed at run time would cost registers
// tenfold.
constexpr int kScratchBytes = 32;
constexpr size_t kScratchOfBlock = size_t{kFlatThreads} * kScratchBytes;
template <class T>
DRELUOP_DEVICE T* scratch_of_thread() {
  return reinterpret_cast<T*>(shared_memory() + threadIdx.x * kScratchBytes);
}

template <Access kAccess>
struct Operands;

template <>
struct Operands<Access::kVector> {
  void* data[kOperands];

  template <class Traits>
  DRELUOP_DEVICE typename Traits::Vec load(int k, int64_t i, int) const {
    return read_words<Traits>(static_cast<const typename Traits::T*>(data[k]) + i);
  }
  template <class Traits>
  DRELUOP_DEVICE void store(int k, int64_t i, int, const typename Traits::Values& values) const {
    write_words<Traits>(static_cast<typename Traits::T*>(data[k]) + i, values);
  }
  template <class Traits>
  DRELUOP_DEVICE typename Traits::T& at(int k, int64_t i) const {
    return static_cast<typename Traits::T*>(data[k])[i];
  }
};

}  // namespace dreluop::cuda
