// Which caps the elements of a vector have, and what they are.
#pragma once

#include "cuda/access.cuh"
#include "dreluop/fast_divmod.h"

namespace dreluop::cuda {

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
  // One element on, from one of `cap` with `left` elements before the next cap.
  DRELUOP_DEVICE void advance(int64_t* cap, int64_t* left) const {
    if (--*left != 0) return;
    *left = static_cast<int64_t>(inner.divisor);
    *cap = after(*cap);
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
  DRELUOP_DEVICE typename Traits::Real number(int64_t cap) const {
    if (is_float32) return static_cast<const float*>(data)[cap * stride];
    return Traits::upcast(static_cast<const typename Traits::T*>(data)[cap * stride]);
  }
  // From a 16-byte aligned address, at stride 1.
  template <class Traits>
  DRELUOP_DEVICE void numbers(int64_t cap, typename Traits::Real* to) const {
    constexpr int kVec = Traits::kVec;
    if (is_float32) {
      const auto run = *reinterpret_cast<const Pack<float, kVec>*>(static_cast<const float*>(data) + cap);
#pragma unroll
      for (int e = 0; e < kVec; ++e) to[e] = run.v[e];
    } else {
      const auto* from = static_cast<const typename Traits::T*>(data) + cap;
      const auto run = *reinterpret_cast<const typename Traits::Values*>(from);
#pragma unroll
      for (int e = 0; e < kVec; ++e) to[e] = Traits::upcast(run.v[e]);
    }
  }
};

// The caps of one vector.
template <class Traits>
struct CapsOfVec {
  using T = typename Traits::T;
  using Real = typename Traits::Real;
  using Source = CapSource<Traits::kAccess>;
  static constexpr int kVec = Traits::kVec;
  const CapMap& map;
  int64_t first = 0;
  int64_t left = 0;  // elements before the cap after `first`

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

  DRELUOP_DEVICE void read(const Source& source, Real* values) const {
    if constexpr (Traits::kMode == CapMode::kSpan) {
      span(values, [&](int64_t cap) { return source.template number<Traits>(cap); });
    } else if constexpr (Traits::kMode == CapMode::kAligned) {
      source.template numbers<Traits>(first, values);
    } else {
      read_each(source, values);
    }
  }

  DRELUOP_DEVICE void read_each(const Source& source, Real* values) const {
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
  DRELUOP_DEVICE void read_as(const Source& source, T* values) const {
    if constexpr (Traits::kMode == CapMode::kSpan) {
      span(values, [&](int64_t cap) { return Traits::round(source.template number<Traits>(cap)); });
    } else {
      Real numbers[kVec];
      read(source, numbers);
#pragma unroll
      for (int e = 0; e < kVec; ++e) values[e] = Traits::round(numbers[e]);
    }
  }
};

}  // namespace dreluop::cuda
