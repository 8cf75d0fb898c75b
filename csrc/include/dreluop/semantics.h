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
  const typename Format::Storage smaller = select(Format::less(x, m) | Format::is_nan(x), x, m);
  return select(Format::positive(smaller) | Format::is_nan(smaller), smaller, Format::zero());
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

// The code of element i of a packed run: four to a byte from the low bits up.
DRELUOP_INLINE uint8_t region_in_byte(uint8_t byte, int position) { return (byte >> (2 * position)) & 3; }

}  // namespace dreluop
