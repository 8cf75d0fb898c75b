// The scalar rule of every backend: the value, the region and the 2-bit code of one element.
//
//   y = max(0, min(x, m)), NaN where x or m is NaN, +0 wherever it is off.
//
// The gradient of y goes to x where y is inside, to m where y is capped, nowhere where it is off; all decided from y.
#pragma once

#include "dreluop/formats.h"

namespace dreluop {

enum Region : uint8_t { kOff = 0, kInside = 1, kCapped = 2 };

constexpr int kCodesPerByte = 4;

// Bitwise operators instead of && and ||: no branch, so that a loop over elements vectorises.
template <class Format>
DRELUOP_INLINE typename Format::Storage capped_value(typename Format::Storage x, typename Format::Storage m) {
  return Format::positive_part(Format::minimum(x, m));
}

template <class Format>
DRELUOP_INLINE bool is_inside(typename Format::Storage y, typename Format::Storage m) {
  return (Format::positive(y) & Format::less(y, m)) | Format::is_nan(y);
}

template <class Format>
DRELUOP_INLINE bool is_capped(typename Format::Storage y, typename Format::Storage m) {
  return Format::equal(y, m) & Format::positive(m);
}

template <class Format>
DRELUOP_INLINE uint8_t region_of(typename Format::Storage y, typename Format::Storage m) {
  return static_cast<uint8_t>(is_inside<Format>(y, m) * kInside + is_capped<Format>(y, m) * kCapped);
}

// The same for two 16-bit numbers in a word.
template <class Format>
DRELUOP_INLINE uint32_t capped_values_of_two(uint32_t x, uint32_t m) {
#if defined(__CUDA_ARCH__)
  return Format::positive_part_of_two(Format::minimum_of_two(x, m));
#else
  const uint16_t low = capped_value<Format>(static_cast<uint16_t>(x), static_cast<uint16_t>(m));
  const uint16_t high = capped_value<Format>(static_cast<uint16_t>(x >> 16), static_cast<uint16_t>(m >> 16));
  return low | static_cast<uint32_t>(high) << 16;
#endif
}

// Whether the low and the high number of a word are inside, or capped: bits 15 and 31.
struct Regions {
  uint32_t inside, capped;
};

// Of outputs of forward, which are +0, positive or NaN: NaN is a magnitude above infinity, equal bits are equal
// numbers.
template <class Format>
DRELUOP_INLINE Regions regions_of_two(uint32_t y, uint32_t m) {
  constexpr uint32_t kMagnitudes = 0x7fff7fff;
  constexpr uint32_t kSigns = 0x80008000;
  constexpr uint32_t kBelowNaN = 0x7fffu - Format::kInfinityBits;
  // What is added carries into a number's sign if it is not zero, or NaN, and never beyond.
  const uint32_t magnitude = y & kMagnitudes, nonzero = magnitude + kMagnitudes, nan = magnitude + kBelowNaN * 0x10001u;
  const uint32_t difference = y ^ m, differs = ((difference & kMagnitudes) + kMagnitudes) | difference;
  const uint32_t capped = nonzero & ~nan & ~differs & kSigns;
  return {nonzero & ~capped & kSigns, capped};
}

// The code of element i of a packed run: four to a byte from the low bits up.
DRELUOP_INLINE uint8_t region_in_byte(uint8_t byte, int position) { return (byte >> (2 * position)) & 3; }

}  // namespace dreluop
