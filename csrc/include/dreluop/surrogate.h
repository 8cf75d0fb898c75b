// The derivatives that attacks put in place of the exact one (dreluop.adaptive): straight through the cap, or a bump.
#pragma once

#include "dreluop/formats.h"

namespace dreluop {

// Straight through: the gradient passes wherever y is on, also at its cap. Under a cap that is not positive y is off.
template <class Format>
DRELUOP_INLINE bool passes(typename Format::Storage y) {
  return Format::positive(y) | Format::is_nan(y);
}

// exp from arithmetic alone: vectorises, and is the same on every instruction set. ln2 = kLn2High + kLn2Low, the first
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

template <int n>
struct InverseFactorial {
  static constexpr double value = InverseFactorial<n - 1>::value / n;
};
template <>
struct InverseFactorial<0> {
  static constexpr double value = 1;
};

template <class Real, int kTerm = 0>
DRELUOP_INLINE Real exp_series(Real r) {
  constexpr Real kCoefficient = static_cast<Real>(InverseFactorial<kTerm>::value);
  if constexpr (kTerm == ExpConstants<Real>::kTerms)
    return kCoefficient;
  else
    return kCoefficient + r * exp_series<Real, kTerm + 1>(r);
}

// exp(a) for a <= 0, within 2 eps; 0 where it would be subnormal; NaN for NaN.
template <class Real>
DRELUOP_INLINE Real exp_of_negative(Real a) {
  using C = ExpConstants<Real>;
  using Bits = typename BitsOf<sizeof(Real)>::Type;
  const Real bounded = select(a < C::kLeast, C::kLeast, a);
  const Real shifted = bounded * static_cast<Real>(1.4426950408889634) + C::kRounder;
  const Real n = shifted - C::kRounder;
  const Real r = (bounded - n * C::kLn2High) - n * C::kLn2Low;
  const Bits exponent = static_cast<Bits>((bit_cast<Bits>(shifted) + Bits{C::kBias}) << C::kMantissa);
  return select(a < C::kLeast, Real(0), exp_series(r) * bit_cast<Real>(exponent));
}

// s (1 - s) for s = sigmoid(z), at most 1/4.
template <class Real>
DRELUOP_INLINE Real sigmoid_slope(Real z) {
  const Real e = exp_of_negative(select(z < 0, z, -z));
  const Real one_and_e = 1 + e;
  return e / (one_and_e * one_and_e);
}

// Soft: the gradient g times a bump of x around half the cap m. Under a cap that is not positive, 0.
template <class Real>
DRELUOP_INLINE Real softened(Real g, Real x, Real m, Real width) {
  return select(m <= 0, Real(0), g * sigmoid_slope((x - m / 2) / width));
}

}  // namespace dreluop
