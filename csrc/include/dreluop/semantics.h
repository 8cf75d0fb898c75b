// The scalar rule of every backend: the value, the region (two bits) of one element.
//
//   y = max(0, min(x, m)), NaN where x or m is NaN, +0 wherever it is off.
//
// The gradient of y goes to x where y is inside, to m where y is capped, nowhere where it is off; all decided from y.
#pragma once

#include <type_traits>

#include "dreluop/dtype_traits.h"

namespace dreluop {

enum Region : uint8_t { kOff = 0, kInside = 1, kCapped = 2 };

constexpr int kElementsPerByte = 4;

// Bitwise operators instead of && and ||: no branch, so that a loop over elements vectorizes.
template <class Traits>
DRELUOP_INLINE typename Traits::Storage capped_value(typename Traits::Storage x, typename Traits::Storage m) {
  return Traits::positive_part(Traits::minimum(x, m));
}

template <class Traits>
DRELUOP_INLINE bool is_inside(typename Traits::Storage y, typename Traits::Storage m) {
  return (Traits::positive(y) & Traits::less(y, m)) | Traits::is_nan(y);
}

template <class Traits>
DRELUOP_INLINE bool is_capped(typename Traits::Storage y, typename Traits::Storage m) {
  return Traits::equal(y, m) & Traits::positive(m);
}

template <class Traits>
DRELUOP_INLINE uint8_t region_of(typename Traits::Storage y, typename Traits::Storage m) {
  return static_cast<uint8_t>(is_inside<Traits>(y, m) * kInside + is_capped<Traits>(y, m) * kCapped);
}

// The same for two 16-bit numbers in a word.
template <class Traits>
DRELUOP_INLINE uint32_t capped_values_of_two(uint32_t x, uint32_t m) {
#if defined(__CUDA_ARCH__)
  return Traits::positive_part_of_two(Traits::minimum_of_two(x, m));
#else
  const uint16_t low = capped_value<Traits>(static_cast<uint16_t>(x), static_cast<uint16_t>(m));
  const uint16_t high = capped_value<Traits>(static_cast<uint16_t>(x >> 16), static_cast<uint16_t>(m >> 16));
  return low | static_cast<uint32_t>(high) << 16;
#endif
}

// What holds for the low and the high number of a word: in bits 15 and 31, or in all bits of each number.
struct Regions {
  uint32_t inside, capped;
};

constexpr uint32_t kSigns = 0x80008000;

// All bits of a number, or none, as its sign says.
DRELUOP_INLINE uint32_t spread_signs(uint32_t word) {
#if defined(__CUDA_ARCH__)
  uint32_t mask;
  asm("prmt.b32 %0, %1, 0, 0xbb99;" : "=r"(mask) : "r"(word));
  return mask;
#else
  return ((word & kSigns) >> 15) * 0xffffu;
#endif
}

// In bits 15 and 31; the others mean nothing. Of outputs of forward, which are +0, positive or NaN: NaN is a magnitude
// above infinity, equal bits are equal numbers.
template <class Traits>
DRELUOP_INLINE Regions region_signs_of_two(uint32_t y, uint32_t m) {
  constexpr uint32_t kMagnitudes = 0x7fff7fff;
  constexpr uint32_t kBelowNaN = 0x7fffu - Traits::kInfinityBits;
  // What is added carries into a number's sign if it is not zero, or NaN, and never beyond.
  const uint32_t magnitude = y & kMagnitudes, nonzero = magnitude + kMagnitudes, nan = magnitude + kBelowNaN * 0x10001u;
  const uint32_t difference = y ^ m, differs = ((difference & kMagnitudes) + kMagnitudes) | difference;
  const uint32_t capped = nonzero & ~nan & ~differs;
  return {nonzero & ~capped, capped};
}

// Whole numbers as masks, of outputs of forward.
template <class Traits>
DRELUOP_INLINE Regions region_masks_of_two(uint32_t y, uint32_t m) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<Traits, Float16>) {
    const uint32_t on = Traits::mask_if_above(y, 0);
    return {on & Traits::mask_if_below(y, m), on & Traits::mask_if_equal(y, m)};
  }
#endif
  const Regions signs = region_signs_of_two<Traits>(y, m);
  return {spread_signs(signs.inside), spread_signs(signs.capped)};
}

template <class Traits>
DRELUOP_INLINE Regions regions_of_two(uint32_t y, uint32_t m) {
  const Regions signs = region_signs_of_two<Traits>(y, m);
  return {signs.inside & kSigns, signs.capped & kSigns};
}

// The same masks from the packed regions of eight numbers, of which word w holds two.
DRELUOP_INLINE Regions region_masks_of_packed_pair(uint32_t region_bits, int w) {
  const uint32_t apart = region_bits | region_bits << 14;  // of the second number 16 bits above the first
  return {spread_signs(apart << (15 - 4 * w)), spread_signs(apart << (14 - 4 * w))};
}

// The region of element i of a packed mask: four to a byte from the low bits up.
DRELUOP_INLINE uint8_t region_in_byte(uint8_t byte, int position) { return (byte >> (2 * position)) & 3; }

}  // namespace dreluop
