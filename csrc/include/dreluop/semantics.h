// The scalar rule of every backend: the value, the region (two bits) of one element.
//
//   y = max(0, min(x, m)), NaN where x or m is NaN, +0 wherever it is off, and where Zeroed says so.
//
// The gradient of y goes to x where y is inside, to m where y is capped, nowhere where it is off; all decided from y.
// Where what is above the cap is zeroed, nothing is capped: its regions are those under a NaN for a cap.
#pragma once

#include <type_traits>

#include "dreluop/dtype_traits.h"

namespace dreluop {

enum Region : uint8_t { kOff = 0, kInside = 1, kCapped = 2 };

// The cap that regions are decided with. No output equals NaN, and none lies above it.
template <class Traits>
DRELUOP_INLINE typename Traits::Storage region_cap(typename Traits::Storage m, Zeroed zeroed) {
  return zeroed & kZeroAbove ? Traits::nan() : m;
}

constexpr int kElementsPerByte = 4;

// Bitwise operators instead of && and ||: no branch, so that a loop over elements vectorizes.
template <class Traits>
DRELUOP_INLINE typename Traits::Storage capped_value(typename Traits::Storage x, typename Traits::Storage m,
                                                     Zeroed zeroed = kZeroNothing) {
  if (zeroed & kZeroAbove) {
    const auto t = select(Traits::is_nan(m), m, x);
    const bool stays = Traits::positive(t) & !Traits::below(m, t);
    return select(zeroed & kZeroNaN ? stays : stays | Traits::is_nan(t), t, Traits::zero());
  }
  const auto y = Traits::minimum(x, m);
  return zeroed & kZeroNaN ? select(Traits::positive(y), y, Traits::zero()) : Traits::positive_part(y);
}

template <class Traits>
DRELUOP_INLINE bool is_inside(typename Traits::Storage y, typename Traits::Storage m) {
  return (Traits::positive(y) & Traits::below(y, m)) | Traits::is_nan(y);
}

template <class Traits>
DRELUOP_INLINE bool is_capped(typename Traits::Storage y, typename Traits::Storage m) {
  return Traits::equal(y, m) & Traits::positive(m);
}

template <class Traits>
DRELUOP_INLINE uint8_t region_of(typename Traits::Storage y, typename Traits::Storage m) {
  return static_cast<uint8_t>(is_inside<Traits>(y, m) * kInside + is_capped<Traits>(y, m) * kCapped);
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

constexpr uint32_t kMagnitudes = 0x7fff7fff;

// The signs of two words, in bits 15 and 31: where their numbers differ in a bit, and where a number is NaN. What is
// added carries into a number's sign if it is not zero, or NaN, and never beyond.
DRELUOP_INLINE uint32_t signs_if_different(uint32_t a, uint32_t b) {
  const uint32_t difference = a ^ b;
  return ((difference & kMagnitudes) + kMagnitudes) | difference;
}
template <class Traits>
DRELUOP_INLINE uint32_t signs_if_nan(uint32_t a) {
  constexpr uint32_t kBelowNaN = 0x7fffu - Traits::kInfinityBits;
  return (a & kMagnitudes) + kBelowNaN * 0x10001u;
}

// Whole numbers as masks, where the minimum y of x and a cap is a number, and not x.
template <class Traits>
DRELUOP_INLINE uint32_t masks_if_cut(uint32_t x, uint32_t y) {
  return spread_signs(signs_if_different(x, y) & ~signs_if_nan<Traits>(y));
}

// The value of two 16-bit numbers in a word.
template <class Traits>
DRELUOP_INLINE uint32_t capped_values_of_two(uint32_t x, uint32_t m, Zeroed zeroed) {
#if defined(__CUDA_ARCH__)
  uint32_t y = Traits::minimum_of_two(x, m);
  if (zeroed & kZeroAbove) y &= ~masks_if_cut<Traits>(x, y);
  return zeroed & kZeroNaN ? Traits::positive_number_of_two(y) : Traits::positive_part_of_two(y);
#else
  const uint16_t low = capped_value<Traits>(static_cast<uint16_t>(x), static_cast<uint16_t>(m), zeroed);
  const uint16_t high = capped_value<Traits>(static_cast<uint16_t>(x >> 16), static_cast<uint16_t>(m >> 16), zeroed);
  return low | static_cast<uint32_t>(high) << 16;
#endif
}

// In bits 15 and 31; the others mean nothing. Of outputs of forward, which are +0, positive or NaN: NaN is a magnitude
// above infinity, equal bits are equal numbers.
template <class Traits>
DRELUOP_INLINE Regions region_signs_of_two(uint32_t y, uint32_t m) {
  const uint32_t nonzero = (y & kMagnitudes) + kMagnitudes;
  const uint32_t capped = nonzero & ~signs_if_nan<Traits>(y) & ~signs_if_different(y, m);
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
