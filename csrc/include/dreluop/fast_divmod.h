// Division by a number known at launch: a multiplication and a shift (Granlund and Montgomery).
#pragma once

#include <cstdint>

#include "dreluop/dtype_traits.h"

namespace dreluop {

// For dividends below 2^63; `short_quotient` for dividends below 2^31, if the divisor is, too.
struct FastDivmod {
  uint64_t divisor = 1;
  uint64_t magic = 1;
  uint32_t shift = 0;
  uint32_t short_magic = 1;

  static FastDivmod of(int64_t divisor) {
    FastDivmod result;
    result.divisor = static_cast<uint64_t>(divisor);
    while (result.shift < 63 && (uint64_t{1} << result.shift) < result.divisor) ++result.shift;
    const unsigned __int128 above = (uint64_t{1} << result.shift) - result.divisor;
    result.magic = static_cast<uint64_t>((above << 64) / result.divisor + 1);
    result.short_magic = static_cast<uint32_t>((above << 32) / result.divisor + 1);
    return result;
  }

  DRELUOP_INLINE uint64_t quotient(uint64_t n) const {
#if defined(__CUDA_ARCH__)
    return (__umul64hi(n, magic) + n) >> shift;
#else
    const unsigned __int128 product = static_cast<unsigned __int128>(n) * magic;
    return (static_cast<uint64_t>(product >> 64) + n) >> shift;
#endif
  }

  DRELUOP_INLINE uint32_t short_quotient(uint32_t n) const {
#if defined(__CUDA_ARCH__)
    return (__umulhi(n, short_magic) + n) >> shift;
#else
    return (static_cast<uint32_t>((static_cast<uint64_t>(n) * short_magic) >> 32) + n) >> shift;
#endif
  }

  DRELUOP_INLINE uint64_t remainder(uint64_t n, uint64_t quotient_of_n) const { return n - quotient_of_n * divisor; }
};

}  // namespace dreluop
