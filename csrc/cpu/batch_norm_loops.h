// The inner loops of batch normalization with a capped activation, compiled once per instruction set.
#pragma once

#include "cpu/primitives.h"

namespace dreluop::cpu {

// What normalizes n elements, and how far: one value that all share, or one each, the same for all five. Arrays reach
// kLanes beyond what is asked.
template <class Real>
struct Normal {
  // t = (x - mean) * scale + shift. Where the cap is NaN, so is the shift, and with it every t.
  Values<Real> mean, scale, shift;
  // Below 0, and where it is NaN: 0.
  Values<Real> cap;
};

// dx = u * scale + ((x - mean) * slope + offset) with u the gradient where inside; without slopes u * scale alone,
// which keeps an infinite x out of it.
template <class Real>
struct Slope {
  Values<Real> slope, offset;
};

constexpr int kGradientSums = 3;  // of u, of u * (x - mean), and of the gradient where capped

template <class Traits>
struct BatchNormLoops {
  using T = typename Traits::Storage;
  using Real = Wide<Traits>;

  // y = the activation of t + residual, rounded before it is compared with `cap`, which 16-bit formats need besides.
  void (*activate)(const T* x, const T* residual, const Normal<Real>& normal, Values<T> cap, T* y, int64_t n);
  // Sums of x - shift and of its square, over n elements of one channel.
  void (*add_moments)(const T* x, Real shift, int64_t n, Lanes* first, Lanes* second);
  // The same over one row of columns, in Real: for few rows.
  void (*add_column_moments)(const T* x, const Real* shift, int64_t n, Real* first, Real* second);
  // Without regions, which 16-bit formats need, the region is found from x.
  void (*add_gradients)(const T* g, const T* x, const uint8_t* regions, const Normal<Real>& normal, int64_t n,
                        Lanes* sums);
  void (*add_column_gradients)(const T* g, const T* x, const uint8_t* regions, const Normal<Real>& normal, int64_t n,
                               Real* const* sums);
  // sum += part, part = 0.
  void (*flush)(Real* part, int64_t n, double* sum);
  // dx may be null, and `inside`, which receives u.
  void (*gradient)(const T* g, const T* x, const uint8_t* regions, const Normal<Real>& normal, const Slope<Real>& slope,
                   T* dx, T* inside, int64_t n);
};

#define DRELUOP_DECLARE_BATCH_NORM(isa)                                         \
  namespace isa {                                                               \
  template <class Traits>                                                       \
  const BatchNormLoops<Traits>& batch_norm_loops();                             \
  extern template const BatchNormLoops<Float32>& batch_norm_loops<Float32>();   \
  extern template const BatchNormLoops<Float64>& batch_norm_loops<Float64>();   \
  extern template const BatchNormLoops<Float16>& batch_norm_loops<Float16>();   \
  extern template const BatchNormLoops<BFloat16>& batch_norm_loops<BFloat16>(); \
  }
DRELUOP_DECLARE_BATCH_NORM(baseline)
#if defined(__x86_64__)
DRELUOP_DECLARE_BATCH_NORM(avx2)
DRELUOP_DECLARE_BATCH_NORM(avx512)
#endif
#undef DRELUOP_DECLARE_BATCH_NORM

template <class Traits>
const BatchNormLoops<Traits>& batch_norm_loops() {
#if defined(__x86_64__)
  if (capability() == Capability::kAvx512) return avx512::batch_norm_loops<Traits>();
  if (capability() == Capability::kAvx2) return avx2::batch_norm_loops<Traits>();
#endif
  return baseline::batch_norm_loops<Traits>();
}

}  // namespace dreluop::cpu
