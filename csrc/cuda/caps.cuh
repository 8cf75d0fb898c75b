// Values given per cap: of any dtype, at any strides.
#pragma once

#include "cuda/access.cuh"
#include "dreluop/cuda_plan.h"
#include "dreluop/fast_divmod.h"
#include "dreluop/semantics.h"

namespace dreluop::cuda {

// The type in which a dtype is computed with and compared, and the one rounding back.
template <class Traits>
struct Working {
  using Real = float;
  using Rule = Float32;
  static DRELUOP_DEVICE float upcast(typename Traits::Storage a) { return Traits::to_float(a); }
  static DRELUOP_DEVICE typename Traits::Storage round(float a) { return Traits::from_float(a); }
};
template <class T>
struct Working<Native<T>> {
  using Real = T;
  using Rule = Native<T>;
  static DRELUOP_DEVICE T upcast(T a) { return a; }
  static DRELUOP_DEVICE T round(T a) { return a; }
};

// A vector as numbers to compute with.
template <class Traits, int kVec>
DRELUOP_DEVICE Pack<typename Working<Traits>::Real, kVec> upcasted(const Vec<typename Traits::Storage, kVec>& vec) {
  if constexpr (sizeof(typename Traits::Storage) == 2) {
    Pack<float, kVec> wide;
    const auto words = bit_cast<Pack<uint32_t, kVec / 2>>(vec);
#pragma unroll
    for (int w = 0; w < kVec / 2; ++w) Traits::to_two_floats(words.v[w], &wide.v[2 * w], &wide.v[2 * w + 1]);
    return wide;
  } else {
    return unpack<typename Traits::Storage, kVec>(vec);
  }
}

constexpr int kCapDims = 8;

struct CapIndex {
  int rank;
  FastDivmod sizes[kCapDims];
};

struct CapArray {
  void* data;
  DType dtype;
  int64_t strides[kCapDims];
};

DRELUOP_DEVICE int64_t offset_of(const CapIndex& index, const CapArray& array, int64_t cap) {
  int64_t result = 0;
  uint64_t i = static_cast<uint64_t>(cap);
#pragma unroll 1
  for (int d = index.rank - 1; d > 0; --d) {
    const uint64_t outer = index.sizes[d].quotient(i);
    result += static_cast<int64_t>(index.sizes[d].remainder(i, outer)) * array.strides[d];
    i = outer;
  }
  return result + static_cast<int64_t>(i) * array.strides[0];
}

template <class Real>
DRELUOP_DEVICE Real read_number(const void* data, DType dtype, int64_t offset) {
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<Real>(static_cast<const float*>(data)[offset]);
    case DType::kFloat64:
      return static_cast<Real>(static_cast<const double*>(data)[offset]);
    case DType::kFloat16:
      return static_cast<Real>(Float16::to_float(static_cast<const uint16_t*>(data)[offset]));
    default:
      return static_cast<Real>(BFloat16::to_float(static_cast<const uint16_t*>(data)[offset]));
  }
}

DRELUOP_DEVICE void write_number(void* data, DType dtype, int64_t offset, double value) {
  switch (dtype) {
    case DType::kFloat32:
      static_cast<float*>(data)[offset] = Float32::round(value);
      break;
    case DType::kFloat64:
      static_cast<double*>(data)[offset] = value;
      break;
    case DType::kFloat16:
      static_cast<uint16_t*>(data)[offset] = Float16::round(value);
      break;
    default:
      static_cast<uint16_t*>(data)[offset] = BFloat16::round(value);
  }
}

// Where the caps of element i begin, and how many elements are left before the next one.
struct CapMap {
  FastDivmod inner, caps;
  bool is_short;  // fewer than 2^31 elements

  DRELUOP_DEVICE int64_t cap_of(int64_t i, int64_t* left) const {
    if (is_short) {
      const auto n = static_cast<uint32_t>(i), length = static_cast<uint32_t>(inner.divisor);
      const uint32_t run = inner.short_quotient(n);
      *left = length - (n - run * length);
      return run - caps.short_quotient(run) * static_cast<uint32_t>(caps.divisor);
    }
    const uint64_t run = inner.quotient(static_cast<uint64_t>(i));
    *left = static_cast<int64_t>(inner.divisor - inner.remainder(static_cast<uint64_t>(i), run));
    return static_cast<int64_t>(caps.remainder(run, caps.quotient(run)));
  }
  DRELUOP_DEVICE int64_t after(int64_t cap) const {
    return cap + 1 == static_cast<int64_t>(caps.divisor) ? 0 : cap + 1;
  }
};

// One array of values per cap as the elementwise passes read it.
template <Access kAccess>
struct CapSource;

// At one stride, of x's own dtype or float32.
template <>
struct CapSource<Access::kVector> {
  const void* data;
  int64_t stride;
  bool is_float32;

  template <class Traits>
  DRELUOP_DEVICE typename Working<Traits>::Real number(int64_t cap) const {
    using T = typename Traits::Storage;
    if (is_float32) return static_cast<const float*>(data)[cap * stride];
    return Working<Traits>::upcast(static_cast<const T*>(data)[cap * stride]);
  }
  // From a 16-byte aligned address, at stride 1.
  template <class Traits, int kVec>
  DRELUOP_DEVICE void numbers(int64_t cap, typename Working<Traits>::Real* to) const {
    using T = typename Traits::Storage;
    if (is_float32) {
      const auto run = *reinterpret_cast<const Pack<float, kVec>*>(static_cast<const float*>(data) + cap);
#pragma unroll
      for (int e = 0; e < kVec; ++e) to[e] = run.v[e];
    } else {
      const auto run = *reinterpret_cast<const Pack<T, kVec>*>(static_cast<const T*>(data) + cap);
#pragma unroll
      for (int e = 0; e < kVec; ++e) to[e] = Working<Traits>::upcast(run.v[e]);
    }
  }
};

template <>
struct CapSource<Access::kGeneral> {
  CapIndex index;
  CapArray array;
  const void* data;

  template <class Traits>
  DRELUOP_DEVICE typename Working<Traits>::Real number(int64_t cap) const {
    return read_number<typename Working<Traits>::Real>(data, array.dtype, offset_of(index, array, cap));
  }
};

// The caps of one vector.
template <class Traits, int kVec, Access kAccess, CapMode kMode>
struct CapsOfVec {
  using Real = typename Working<Traits>::Real;
  const CapMap& map;
  int64_t first = 0;
  int64_t left = 0;  // elements before the cap after `first`
  using T = typename Traits::Storage;

  DRELUOP_DEVICE CapsOfVec(const CapMap& caps, int64_t i) : map(caps) { first = map.cap_of(i, &left); }

  // Calls get(cap) for the one or two caps of the vector, and lays what it gives out for its elements.
  template <class Value, class Get>
  DRELUOP_DEVICE void span(Value* values, const Get& get) const {
    const Value one = get(first);
#pragma unroll
    for (int e = 0; e < kVec; ++e) values[e] = one;
    if (left >= kVec) return;
    const Value next = get(map.after(first));
    const int from = static_cast<int>(left);
#pragma unroll
    for (int e = 1; e < kVec; ++e) values[e] = e < from ? one : next;
  }

  DRELUOP_DEVICE void read(const CapSource<kAccess>& source, Real* values) const {
    if constexpr (kMode == CapMode::kSpan) {
      span(values, [&](int64_t cap) { return source.template number<Traits>(cap); });
    } else if constexpr (kMode == CapMode::kAligned) {
      source.template numbers<Traits, kVec>(first, values);
    } else {
      read_each(source, values);
    }
  }

  DRELUOP_DEVICE void read_each(const CapSource<kAccess>& source, Real* values) const {
    Real* scratch = scratch_of_thread<Real>();
    int64_t cap = first, until = left;
    Real value = 0;
#pragma unroll 1
    for (int e = 0; e < kVec; ++e) {
      if (until == 0) {
        until = static_cast<int64_t>(map.inner.divisor);
        cap = map.after(cap);
      }
      if (e == 0 || until == static_cast<int64_t>(map.inner.divisor)) value = source.template number<Traits>(cap);
      scratch[e] = value;
      --until;
    }
    const auto all = *reinterpret_cast<Pack<Real, kVec>*>(scratch);
#pragma unroll
    for (int e = 0; e < kVec; ++e) values[e] = all.v[e];
  }

  // Rounded to x's dtype.
  DRELUOP_DEVICE void read_as(const CapSource<kAccess>& source, T* values) const {
    if constexpr (kMode == CapMode::kSpan) {
      span(values, [&](int64_t cap) { return Working<Traits>::round(source.template number<Traits>(cap)); });
    } else {
      Real numbers[kVec];
      read(source, numbers);
#pragma unroll
      for (int e = 0; e < kVec; ++e) values[e] = Working<Traits>::round(numbers[e]);
    }
  }
};

}  // namespace dreluop::cuda
