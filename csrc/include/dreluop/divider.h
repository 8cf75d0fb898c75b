// Division by a number known at launch: a multiplication and a shift (Granlund and Montgomery).
#pragma once

#include <cstdint>

#include "dreluop/formats.h"

namespace dreluop {

struct Divider {
  uint64_t divisor = 1;
  uint64_t magic = 1;
  uint32_t shift = 0;
  uint32_t narrow = 1;  // dividends stay below 2^31: 32-bit arithmetic

  // Dividends are at most `largest`, below 2^63.
  static Divider of(int64_t divisor, int64_t largest) {
    Divider result;
    result.divisor = static_cast<uint64_t>(divisor);
    result.narrow = largest < (int64_t{1} << 31) && divisor < (int64_t{1} << 31);
    while (result.shift < 63 && (uint64_t{1} << result.shift) < result.divisor) ++result.shift;
    const unsigned __int128 one = 1;
    const int bits = result.narrow ? 32 : 64;
    result.magic =
        static_cast<uint64_t>(((one << bits) * ((one << result.shift) - result.divisor)) / result.divisor + 1);
    return result;
  }

  DRELUOP_INLINE uint64_t quotient(uint64_t n) const {
    if (narrow) {
      const uint32_t low = static_cast<uint32_t>(n);
      return (static_cast<uint32_t>((static_cast<uint64_t>(low) * static_cast<uint32_t>(magic)) >> 32) + low) >> shift;
    }
#if defined(__CUDA_ARCH__)
    return (__umul64hi(n, magic) + n) >> shift;
#else
    return (static_cast<uint64_t>((static_cast<unsigned __int128>(n) * magic) >> 64) + n) >> shift;
#endif
  }

  DRELUOP_INLINE uint64_t remainder(uint64_t n, uint64_t quotient_of_n) const { return n - quotient_of_n * divisor; }
};

}  // namespace dreluop
