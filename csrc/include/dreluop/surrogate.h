// The derivatives that attacks put in place of the exact one (dreluop.adaptive): straight through the cap, or smoothed.
#pragma once

#include <cmath>

#include "dreluop/dtype_traits.h"

namespace dreluop {

// Straight through: the gradient passes wherever y is on, also at its cap. Under a cap that is not positive y is off.
template <class Traits>
DRELUOP_INLINE bool passes(typename Traits::Storage y) {
  return Traits::positive(y) | Traits::is_nan(y);
}

// exp from arithmetic alone: vectorizes, and is the same on every instruction set. ln2 = kLn2High + kLn2Low, the first
// with few enough bits that n * kLn2High is exact. Adding kRounder leaves n in the low bits.
template <class Real>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float kLeast = -87.0f, kRounder = 12582912.0f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr int kTerms = 7, kMantissa = 23, kBias = 127;
};
template <>
struct ExpConstants<double> {
  static constexpr double kLeast = -708.0, kRounder = 6755399441055744.0, kLn2High = 0.693145751953125,
                          kLn2Low = 1.42860682030941723212e-6;
  static constexpr int kTerms = 13, kMantissa = 52, kBias = 1023;
};

constexpr DRELUOP_INLINE double inverse_factorial(int n) { return n == 0 ? 1 : inverse_factorial(n - 1) / n; }

template <class Real, int kTerm = 0>
DRELUOP_INLINE Real exp_series(Real r) {
  constexpr Real kCoefficient = static_cast<Real>(inverse_factorial(kTerm));
  if constexpr (kTerm == ExpConstants<Real>::kTerms)
    return kCoefficient;
  else
    return kCoefficient + r * exp_series<Real, kTerm + 1>(r);
}

// exp(a) = power * (1 + rest) for a <= 0, power a power of 2. Below kLeast, a is taken for kLeast.
template <class Real>
struct ExpParts {
  Real power, rest;
};

template <class Real>
DRELUOP_INLINE ExpParts<Real> exp_parts(Real a) {
  using C = ExpConstants<Real>;
  using Bits = BitsOf<sizeof(Real)>;
  const Real bounded = select(a < C::kLeast, C::kLeast, a);
  const Real shifted = bounded * static_cast<Real>(1.4426950408889634) + C::kRounder;
  const Real n = shifted - C::kRounder;
  const Real r = (bounded - n * C::kLn2High) - n * C::kLn2Low;
  const Bits exponent = static_cast<Bits>((bit_cast<Bits>(shifted) + Bits{C::kBias}) << C::kMantissa);
  return {bit_cast<Real>(exponent), r * exp_series<Real, 1>(r)};
}

// exp(a) for a <= 0, within 2 eps; 0 where it would be subnormal; NaN for NaN.
template <class Real>
DRELUOP_INLINE Real exp_of_negative(Real a) {
  const ExpParts<Real> e = exp_parts(a);
  return select(a < ExpConstants<Real>::kLeast, Real(0), (1 + e.rest) * e.power);
}

// 1 - exp(a) for a <= 0, within a few eps: near 0, power is 1 and nothing cancels.
template <class Real>
DRELUOP_INLINE Real one_minus_exp(Real a) {
  const ExpParts<Real> e = exp_parts(a);
  return (1 - e.power) - e.power * e.rest;
}

template <class Real>
DRELUOP_INLINE Real sigmoid(Real z) {
  const Real e = exp_of_negative(select(z < 0, z, -z));
  return select(z < 0, e, Real(1)) / (1 + e);
}

// sigmoid(x / width) - sigmoid((x - m) / width) for m > 0, as a product: the difference cancels where m << width. Every
// x is infinitely far below an infinite m.
template <class Real>
DRELUOP_INLINE Real smoothed_slope(Real x, Real m, Real width) {
  const Real to_cap = select(m == static_cast<Real>(HUGE_VAL), m, m - x);
  return sigmoid(x / width) * sigmoid(to_cap / width) * one_minus_exp(-m / width);
}

// Soft: the gradient g times the smoothed slope. Under a cap that is not positive, 0.
template <class Real>
DRELUOP_INLINE Real softened(Real g, Real x, Real m, Real width) {
  return select(m <= 0, Real(0), g * smoothed_slope(x, m, width));
}

}  // namespace dreluop
