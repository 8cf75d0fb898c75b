// What a kernel is compiled for, as one type: the dtype of x, how x lies in memory, how the caps of a vector are found.
#pragma once

#include "cuda/runtime.cuh"
#include "dreluop/cuda_plan.h"
#include "dreluop/semantics.h"

namespace dreluop::cuda {

// kVector: every operand lies densely in traversal order, vectors are 16-byte aligned. kGeneral: anything.
enum class Access : uint8_t { kVector, kGeneral };

// The elements of a vector.
template <class T, int kVec>
struct alignas(16) Pack {
  T v[kVec];
};

// A vector as it lies in memory, in 16-byte words: taking it apart waits until it is used.
template <int kBytes>
struct Words {
  uint4 v[kBytes / 16];
};

// The type in which a dtype is computed with and compared, and the one rounding back.
template <class Number>
struct Working {
  using Real = float;
  using Rule = Float32;
  static DRELUOP_DEVICE float upcast(typename Number::Storage a) { return Number::to_float(a); }
  static DRELUOP_DEVICE typename Number::Storage round(float a) { return Number::from_float(a); }
};
template <class T>
struct Working<Native<T>> {
  using Real = T;
  using Rule = Native<T>;
  static DRELUOP_DEVICE T upcast(T a) { return a; }
  static DRELUOP_DEVICE T round(T a) { return a; }
};

template <class DTypeTraits, Access kAccessToX, CapMode kModeOfCaps = CapMode::kEach>
struct KernelTraits : Working<DTypeTraits> {
  using Number = DTypeTraits;
  using T = typename Number::Storage;
  static constexpr Access kAccess = kAccessToX;
  static constexpr CapMode kMode = kModeOfCaps;
  static constexpr int kVec = sizeof(T) == 2 ? 8 : 4;
  using Values = Pack<T, kVec>;
  using Vec = Words<kVec * sizeof(T)>;
};

template <class DTypeTraits>
using GeneralTraits = KernelTraits<DTypeTraits, Access::kGeneral>;

template <class Traits>
DRELUOP_DEVICE typename Traits::Values unpack(const typename Traits::Vec& vec) {
  return bit_cast<typename Traits::Values>(vec);
}

// A vector as numbers to compute with.
template <class Traits>
DRELUOP_DEVICE Pack<typename Traits::Real, Traits::kVec> upcasted(const typename Traits::Vec& vec) {
  if constexpr (sizeof(typename Traits::T) == 2) {
    Pack<float, Traits::kVec> wide;
    const auto words = bit_cast<Pack<uint32_t, Traits::kVec / 2>>(vec);
#pragma unroll
    for (int w = 0; w < Traits::kVec / 2; ++w)
      Traits::Number::to_two_floats(words.v[w], &wide.v[2 * w], &wide.v[2 * w + 1]);
    return wide;
  } else {
    return unpack<Traits>(vec);
  }
}

}  // namespace dreluop::cuda
