// Reading and writing vectors of elements in traversal order.
#pragma once

#include "cuda/runtime.cuh"
#include "dreluop/fast_divmod.h"

namespace dreluop::cuda {

template <class T, int kVec>
struct alignas(16) Pack {
  T v[kVec];
};

// A vector as it lies in memory, in 16-byte words: taking it apart waits until it is used.
template <int kBytes>
struct Words {
  uint4 v[kBytes / 16];
};

template <class T, int kVec>
using Vec = Words<kVec * sizeof(T)>;

template <class T, int kVec>
DRELUOP_DEVICE Pack<T, kVec> unpack(const Vec<T, kVec>& vec) {
  return bit_cast<Pack<T, kVec>>(vec);
}

template <class T, int kVec>
DRELUOP_DEVICE Vec<T, kVec> read_words(const T* from) {
  Vec<T, kVec> vec;
#pragma unroll
  for (size_t k = 0; k < sizeof(vec) / sizeof(uint4); ++k) vec.v[k] = reinterpret_cast<const uint4*>(from)[k];
  return vec;
}

// To global memory.
template <class T, int kVec>
DRELUOP_DEVICE void write_words(T* to, const Pack<T, kVec>& values) {
  const auto vec = bit_cast<Vec<T, kVec>>(values);
#pragma unroll
  for (size_t k = 0; k < sizeof(vec) / sizeof(uint4); ++k) store_word(reinterpret_cast<uint4*>(to) + k, vec.v[k]);
}

// kVector: every operand lies densely in traversal order, vectors are 16-byte aligned. kGeneral: anything.
enum class Access : uint8_t { kVector, kGeneral };

constexpr int kOperands = 3;
constexpr int kMaxDims = 64;

// Scratch space for one vector at the calling thread's disposal: what is indexed at run time would cost registers
// tenfold.
constexpr int kScratchBytes = 32;
template <class T>
DRELUOP_DEVICE T* scratch_of_thread() {
  return reinterpret_cast<T*>(shared_memory() + threadIdx.x * kScratchBytes);
}

template <Access kAccess>
struct Operands;

template <>
struct Operands<Access::kVector> {
  void* data[kOperands];

  template <class T, int kVec>
  DRELUOP_DEVICE Vec<T, kVec> load(int k, int64_t i, int) const {
    return read_words<T, kVec>(static_cast<const T*>(data[k]) + i);
  }
  template <class T, int kVec>
  DRELUOP_DEVICE void store(int k, int64_t i, int, const Pack<T, kVec>& values) const {
    write_words(static_cast<T*>(data[k]) + i, values);
  }
  template <class T>
  DRELUOP_DEVICE T& at(int k, int64_t i) const {
    return static_cast<T*>(data[k])[i];
  }
};

enum class Kind : uint32_t { kPacked, kLinear, kStrided };

template <>
struct Operands<Access::kGeneral> {
  int rank;
  Kind kind[kOperands];
  void* data[kOperands];
  int64_t strides[kOperands][kMaxDims];
  FastDivmod sizes[kMaxDims];

  // The first n elements of a vector; the rest is zero.
  template <class T, int kVec>
  DRELUOP_DEVICE Vec<T, kVec> load(int k, int64_t i, int n) const {
    if (kind[k] == Kind::kPacked && n == kVec) return read_words<T, kVec>(static_cast<const T*>(data[k]) + i);
    T* scratch = scratch_of_thread<T>();
#pragma unroll 1
    for (int e = 0; e < kVec; ++e) scratch[e] = e < n ? at<T>(k, i + e) : T(0);
    return read_words<T, kVec>(scratch);
  }
  template <class T, int kVec>
  DRELUOP_DEVICE void store(int k, int64_t i, int n, const Pack<T, kVec>& values) const {
    if (kind[k] == Kind::kPacked && n == kVec) {
      write_words(static_cast<T*>(data[k]) + i, values);
      return;
    }
    T* scratch = scratch_of_thread<T>();
    *reinterpret_cast<Pack<T, kVec>*>(scratch) = values;
#pragma unroll 1
    for (int e = 0; e < n; ++e) at<T>(k, i + e) = scratch[e];
  }
  template <class T>
  DRELUOP_DEVICE T& at(int k, int64_t i) const {
    return static_cast<T*>(data[k])[kind[k] == Kind::kStrided ? offset(k, static_cast<uint64_t>(i)) : i];
  }

 private:
  DRELUOP_DEVICE int64_t offset(int k, uint64_t i) const {
    int64_t result = 0;
#pragma unroll 1
    for (int d = rank - 1; d > 0; --d) {
      const uint64_t outer = sizes[d].quotient(i);
      result += static_cast<int64_t>(sizes[d].remainder(i, outer)) * strides[k][d];
      i = outer;
    }
    return result + static_cast<int64_t>(i) * strides[k][0];
  }
};

}  // namespace dreluop::cuda
