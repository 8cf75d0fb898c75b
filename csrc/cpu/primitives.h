// The inner loops over contiguous elements, compiled once per instruction set and chosen at run time.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/capability.h"
#include "dreluop/semantics.h"
#include "dreluop/surrogate.h"

namespace dreluop::cpu {

// A running sum in double; for double terms with the rounding errors kept apart (a plain sum of doubles would miss the
// bound of 8 eps). Lane i takes every kLanes-th term, so the order does not depend on the instruction set.
constexpr int kLanes = 16;
struct Lanes {
  double sum[kLanes] = {};
  double error[kLanes] = {};
};

// Rows whose terms are added to one another before they meet a column's sum: two roundings to float, far inside the
// bound, and a quarter of the additions in double. Four terms whose sum float does not hold overflow, as in any sum in
// float.
constexpr int kRowsAtOnce = 4;

// What sums of a dtype's values are computed in.
template <class Traits>
using WideTraits = std::conditional_t<sizeof(typename Traits::Storage) == sizeof(double), Float64, Float32>;
template <class Traits>
using Wide = typename WideTraits<Traits>::Storage;

// The caps, biases or widths of n elements: a value that all of them share, or one each.
template <class T>
struct Values {
  const T* first;
  bool shared;
};

template <class Traits>
struct Primitives {
  using T = typename Traits::Storage;

  // t = (x + bias) + residual, rounded once; residual may be null, t may be x.
  void (*add)(const T* x, Values<Wide<Traits>> bias, const T* residual, T* t, int64_t n);
  void (*forward)(const T* x, Values<T> m, T* y, int64_t n, Zeroed zeroed);
  void (*regions)(const T* y, Values<T> m, uint8_t* regions, int64_t n);
  // dx = g where inside, to_cap = g where capped, else 0. Either may be null.
  void (*route)(const T* g, const T* y, Values<T> m, T* dx, T* to_cap, int64_t n);
  void (*route_regions)(const T* g, const uint8_t* regions, T* dx, T* to_cap, int64_t n);
  // out = u where inside, v where capped, else 0.
  void (*jvp)(const T* u, Values<T> v, const uint8_t* regions, T* out, int64_t n);
  // dx = g where y is on, also at its cap, else 0.
  void (*pass)(const T* g, const T* y, T* dx, int64_t n);
  void (*pass_regions)(const T* g, const uint8_t* regions, T* dx, int64_t n);
  // dx = g times the slope of the activation, smoothed over the given width.
  void (*soften)(const T* g, const T* x, Values<T> m, Values<Wide<Traits>> width, T* dx, int64_t n);
  void (*add_run)(const T* terms, int64_t n, Lanes* lanes);
  // sum[i] += terms[i]; error is read and written for double only.
  void (*add_columns)(const T* terms, int64_t n, double* sum, double* error);
  // sum[i] += the terms i of kRowsAtOnce rows, added in pairs in float first; not for double.
  void (*add_rows)(const T* const* rows, int64_t n, double* sum);
  void (*pack)(const uint8_t* regions, int64_t n, uint8_t* mask);
  void (*unpack)(const uint8_t* mask, int64_t first, int64_t n, uint8_t* regions);
  void (*count)(const uint8_t* regions, int64_t n, int64_t* inside, int64_t* capped);
};

// s + t, and the rounding error of that in `error`.
DRELUOP_INLINE double two_sum(double s, double t, double* error) {
  const double sum = s + t;
  const double back = sum - s;
  *error += (s - (sum - back)) + (t - back);
  return sum;
}

// An infinite or NaN sum has a meaningless error term.
DRELUOP_INLINE double with_error(double sum, double error) { return sum - sum == 0 ? sum + error : sum; }

#define DRELUOP_DECLARE_PRIMITIVES(isa)                               \
  namespace isa {                                                     \
  template <class Traits>                                             \
  const Primitives<Traits>& primitives();                             \
  extern template const Primitives<Float32>& primitives<Float32>();   \
  extern template const Primitives<Float64>& primitives<Float64>();   \
  extern template const Primitives<Float16>& primitives<Float16>();   \
  extern template const Primitives<BFloat16>& primitives<BFloat16>(); \
  }
DRELUOP_DECLARE_PRIMITIVES(baseline)
#if defined(__x86_64__)
DRELUOP_DECLARE_PRIMITIVES(avx2)
DRELUOP_DECLARE_PRIMITIVES(avx512)
#endif
#undef DRELUOP_DECLARE_PRIMITIVES

template <class Traits>
const Primitives<Traits>& primitives() {
#if defined(__x86_64__)
  if (capability() == Capability::kAvx512) return avx512::primitives<Traits>();
  if (capability() == Capability::kAvx2) return avx2::primitives<Traits>();
#endif
  return baseline::primitives<Traits>();
}

}  // namespace dreluop::cpu
