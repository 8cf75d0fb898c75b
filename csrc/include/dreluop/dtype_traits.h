// How each dtype is stored, compared and converted. 16-bit formats are compared on their bits: the same code vectorizes
// on any CPU and needs no conversion on a GPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define DRELUOP_INLINE __host__ __device__ __forceinline__
#else
// Forced, so that no copy built for one instruction set is ever linked into code built for another.
#define DRELUOP_INLINE inline __attribute__((always_inline))
#endif

namespace dreluop {

enum class DType : uint8_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

// What an activation makes +0 that it otherwise would not: one bit each, as in dreluop/_internal/zeroed.py.
enum Zeroed : uint8_t { kZeroNothing = 0, kZeroAbove = 1, kZeroNaN = 2, kZeroBoth = 3 };

template <class To, class From>
DRELUOP_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

template <int kBytes>
using BitsOf = std::conditional_t<kBytes == 2, uint16_t, std::conditional_t<kBytes == 4, uint32_t, uint64_t>>;

// condition ? a : b, never as a branch: g++ 12 turns the plain form back into one, and the loop is not vectorized.
template <class T>
DRELUOP_INLINE T select(bool condition, T a, T b) {
#if defined(__CUDA_ARCH__)
  return condition ? a : b;
#else
  using Bits = BitsOf<sizeof(T)>;
  const Bits mask = static_cast<Bits>(-static_cast<Bits>(condition));
  return bit_cast<T>(static_cast<Bits>((bit_cast<Bits>(a) & mask) | (bit_cast<Bits>(b) & static_cast<Bits>(~mask))));
#endif
}

// The smaller number, NaN if one of them is NaN: `minimum` of its traits. Never asked to tell -0 from +0.
template <class Traits>
DRELUOP_INLINE typename Traits::Storage minimum_by_select(typename Traits::Storage a, typename Traits::Storage b) {
  return select(Traits::less(a, b) | Traits::is_nan(a), a, b);
}

// max(0, a), +0 where that is zero, NaN if a is NaN: `positive_part` of its traits.
template <class Traits>
DRELUOP_INLINE typename Traits::Storage positive_part_by_select(typename Traits::Storage a) {
  return select(Traits::positive(a) | Traits::is_nan(a), a, Traits::zero());
}

template <class Real>
struct Native {
  using Storage = Real;
  static constexpr DType kDType = sizeof(Real) == sizeof(float) ? DType::kFloat32 : DType::kFloat64;
  static DRELUOP_INLINE Real zero() { return Real(0); }
  static DRELUOP_INLINE Real nan() { return static_cast<Real>(bit_cast<float>(0x7fc00000u)); }
  static DRELUOP_INLINE bool is_nan(Real a) { return a != a; }
  static DRELUOP_INLINE bool less(Real a, Real b) { return a < b; }
  // a < b where one of them is a positive number; true where the other is NaN.
  static DRELUOP_INLINE bool below(Real a, Real b) { return !(a >= b); }
  static DRELUOP_INLINE bool equal(Real a, Real b) { return a == b; }
  static DRELUOP_INLINE bool positive(Real a) { return a > Real(0); }
  static DRELUOP_INLINE Real minimum(Real a, Real b) {
#if defined(__CUDA_ARCH__)
    if constexpr (sizeof(Real) == 4) {
      Real smaller;
      asm("min.NaN.f32 %0, %1, %2;" : "=f"(smaller) : "f"(a), "f"(b));
      return smaller;
    }
#endif
    return minimum_by_select<Native>(a, b);
  }
  static DRELUOP_INLINE Real positive_part(Real a) {
#if defined(__CUDA_ARCH__)
    if constexpr (sizeof(Real) == 4) {
      Real larger;
      asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(larger) : "f"(a));
      return larger;
    }
#endif
    return positive_part_by_select<Native>(a);
  }
  static DRELUOP_INLINE double upcast(Real a) { return static_cast<double>(a); }
  static DRELUOP_INLINE Real round(double a) { return static_cast<Real>(a); }
};

// CUDA's types of one number and of the two in a word.
struct CudaBFloat16 {
#if defined(__CUDACC__)
  using One = __nv_bfloat16;
  using Two = __nv_bfloat162;
#endif
};
struct CudaFloat16 {
#if defined(__CUDACC__)
  using One = __half;
  using Two = __half2;
#endif
};

// A 16-bit float is its sign, then its magnitude; magnitudes above infinity are NaN.
template <class Self, int16_t kInfinity, class Cuda>
struct Bits16 {
  using Storage = uint16_t;
  static DRELUOP_INLINE uint16_t zero() { return 0; }
  static DRELUOP_INLINE uint16_t nan() { return 0x7fff; }
  static constexpr uint32_t kInfinityBits = kInfinity;
#if defined(__CUDA_ARCH__)
  // A GPU upcasts in one instruction, and its comparisons know NaN.
  static DRELUOP_INLINE bool is_nan(uint16_t a) { return Self::to_float(a) != Self::to_float(a); }
  static DRELUOP_INLINE bool less(uint16_t a, uint16_t b) { return Self::to_float(a) < Self::to_float(b); }
  static DRELUOP_INLINE bool below(uint16_t a, uint16_t b) { return !(Self::to_float(a) >= Self::to_float(b)); }
  static DRELUOP_INLINE bool equal(uint16_t a, uint16_t b) { return Self::to_float(a) == Self::to_float(b); }
  static DRELUOP_INLINE bool positive(uint16_t a) { return Self::to_float(a) > 0.0f; }
  static DRELUOP_INLINE typename Cuda::One one(uint16_t a) { return bit_cast<typename Cuda::One>(a); }
  static DRELUOP_INLINE typename Cuda::Two two(uint32_t word) { return bit_cast<typename Cuda::Two>(word); }
  static DRELUOP_INLINE uint16_t minimum(uint16_t a, uint16_t b) {
    return bit_cast<uint16_t>(__hmin_nan(one(a), one(b)));
  }
  static DRELUOP_INLINE uint16_t positive_part(uint16_t a) { return bit_cast<uint16_t>(__hmax_nan(one(a), one(0))); }
  static DRELUOP_INLINE uint32_t minimum_of_two(uint32_t a, uint32_t b) {
    return bit_cast<uint32_t>(__hmin2_nan(two(a), two(b)));
  }
  static DRELUOP_INLINE uint32_t positive_part_of_two(uint32_t a) {
    return bit_cast<uint32_t>(__hmax2_nan(two(a), two(0)));
  }
  // +0 for NaN.
  static DRELUOP_INLINE uint32_t positive_number_of_two(uint32_t a) {
    return bit_cast<uint32_t>(__hmax2(two(a), two(0)));
  }
#else
  static DRELUOP_INLINE bool is_nan(uint16_t a) { return static_cast<int16_t>(a & 0x7fff) > kInfinity; }
  // As integers, 16-bit floats ascend with their value from -0 up; below that they descend. The rule never depends on
  // the order of two negative numbers, nor on that of -0 and +0.
  static DRELUOP_INLINE bool less(uint16_t a, uint16_t b) {
    return (static_cast<int16_t>(a) < static_cast<int16_t>(b)) & !is_nan(a) & !is_nan(b);
  }
  static DRELUOP_INLINE bool below(uint16_t a, uint16_t b) { return static_cast<int16_t>(a) < static_cast<int16_t>(b); }
  // Never asked about -0 against +0: the rule compares outputs, which are +0 or positive.
  static DRELUOP_INLINE bool equal(uint16_t a, uint16_t b) { return (a == b) & !is_nan(a); }
  static DRELUOP_INLINE bool positive(uint16_t a) { return (static_cast<int16_t>(a) > 0) & !is_nan(a); }
  static DRELUOP_INLINE uint16_t minimum(uint16_t a, uint16_t b) { return minimum_by_select<Bits16>(a, b); }
  static DRELUOP_INLINE uint16_t positive_part(uint16_t a) { return positive_part_by_select<Bits16>(a); }
#endif
  static DRELUOP_INLINE double upcast(uint16_t a) { return static_cast<double>(Self::to_float(a)); }
  static DRELUOP_INLINE uint16_t round(double a) { return Self::from_float(static_cast<float>(a)); }
};

using Float32 = Native<float>;
using Float64 = Native<double>;

struct BFloat16 : Bits16<BFloat16, 0x7f80, CudaBFloat16> {
  static constexpr DType kDType = DType::kBFloat16;
  static DRELUOP_INLINE float to_float(uint16_t a) { return bit_cast<float>(static_cast<uint32_t>(a) << 16); }
  static DRELUOP_INLINE void to_two_floats(uint32_t word, float* low, float* high) {
    *low = bit_cast<float>(word << 16);
    *high = bit_cast<float>(word & 0xffff0000u);
  }
  static DRELUOP_INLINE uint16_t from_float(float a) {
#if defined(__CUDA_ARCH__)
    return bit_cast<uint16_t>(__float2bfloat16_rn(a));
#else
    const uint32_t u = bit_cast<uint32_t>(a);
    if (a != a) return static_cast<uint16_t>((u >> 16) | 0x40);
    return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
#endif
  }
};

struct Float16 : Bits16<Float16, 0x7c00, CudaFloat16> {
  static constexpr DType kDType = DType::kFloat16;
#if defined(__CUDA_ARCH__)
  // For two numbers at once, all bits of a number or none: a > b, a < b, both also where either is NaN; a == b.
  static DRELUOP_INLINE uint32_t mask_if_above(uint32_t a, uint32_t b) { return __hgtu2_mask(two(a), two(b)); }
  static DRELUOP_INLINE uint32_t mask_if_below(uint32_t a, uint32_t b) { return __hltu2_mask(two(a), two(b)); }
  static DRELUOP_INLINE uint32_t mask_if_equal(uint32_t a, uint32_t b) { return __heq2_mask(two(a), two(b)); }
#endif
  static DRELUOP_INLINE void to_two_floats(uint32_t word, float* low, float* high) {
    *low = to_float(static_cast<uint16_t>(word));
    *high = to_float(static_cast<uint16_t>(word >> 16));
  }
  // Integer only: neither rounding modes nor a flush of subnormals may change the result.
  static DRELUOP_INLINE float to_float(uint16_t a) {
#if defined(__CUDA_ARCH__)
    return __half2float(one(a));
#else
    const uint32_t sign = static_cast<uint32_t>(a & 0x8000) << 16;
    uint32_t magnitude = a & 0x7fff;
    if (magnitude >= 0x7c00) return bit_cast<float>(sign | 0x7f800000 | ((magnitude & 0x3ff) << 13));
    if (magnitude >= 0x0400) return bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
    if (magnitude == 0) return bit_cast<float>(sign);
    uint32_t exponent = 113;
    while ((magnitude & 0x0400) == 0) {
      magnitude <<= 1;
      --exponent;
    }
    return bit_cast<float>(sign | (exponent << 23) | ((magnitude & 0x3ff) << 13));
#endif
  }
  static DRELUOP_INLINE uint16_t from_float(float a) {
#if defined(__CUDA_ARCH__)
    return bit_cast<uint16_t>(__float2half_rn(a));
#else
    const uint32_t u = bit_cast<uint32_t>(a);
    const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000);
    const uint32_t magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to 65536 or more
    if (magnitude >= 0x38800000) {                                             // normal in fp16
      const uint32_t rebased = magnitude - (112u << 23);
      return static_cast<uint16_t>(sign | ((rebased + 0xfff + ((rebased >> 13) & 1)) >> 13));
    }
    if (magnitude <= 0x33000000) return sign;  // at most half of the smallest subnormal: ties to even, to zero
    const uint32_t exponent = magnitude >> 23;
    const uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000;
    const uint32_t shift = 126 - exponent;  // 14 for the largest subnormal, 24 for the smallest
    const uint32_t half = (1u << (shift - 1)) - 1;
    return static_cast<uint16_t>(sign | ((mantissa + half + ((mantissa >> shift) & 1)) >> shift));
#endif
  }
};

constexpr int64_t size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// Calls f with the traits of a dtype, f(Traits()), and gives what it returns.
template <class F>
auto with_dtype_traits(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(Float32());
    case DType::kFloat64:
      return f(Float64());
    case DType::kFloat16:
      return f(Float16());
    default:
      return f(BFloat16());
  }
}

}  // namespace dreluop
