// The scalar rule on whole vectors: 16-bit numbers two to a word.
#pragma once

#include "cuda/access.cuh"

namespace dreluop::cuda {

// The two numbers of each word of a vector of 16-bit numbers.
template <class Traits>
using Pairs = Pack<uint32_t, Traits::kVec / 2>;
template <class Traits>
constexpr bool kInPairs = sizeof(typename Traits::T) == 2;

template <class Traits>
DRELUOP_DEVICE typename Traits::Values capped_values(const typename Traits::Values& x,
                                                     const typename Traits::Values& cap, Zeroed zeroed = kZeroNothing) {
  using Number = typename Traits::Number;
  constexpr int kVec = Traits::kVec;
  if constexpr (kInPairs<Traits>) {
    auto words = bit_cast<Pairs<Traits>>(x);
    const auto caps = bit_cast<Pairs<Traits>>(cap);
#pragma unroll
    for (int w = 0; w < kVec / 2; ++w) words.v[w] = capped_values_of_two<Number>(words.v[w], caps.v[w], zeroed);
    return bit_cast<typename Traits::Values>(words);
  } else {
    typename Traits::Values y;
#pragma unroll
    for (int e = 0; e < kVec; ++e) y.v[e] = capped_value<Number>(x.v[e], cap.v[e], zeroed);
    return y;
  }
}

template <class Traits>
DRELUOP_DEVICE typename Traits::Values region_caps(const typename Traits::Values& cap, Zeroed zeroed) {
  typename Traits::Values caps;
#pragma unroll
  for (int e = 0; e < Traits::kVec; ++e) caps.v[e] = region_cap<typename Traits::Number>(cap.v[e], zeroed);
  return caps;
}

// The packed regions of a vector's outputs.
template <class Traits>
DRELUOP_DEVICE uint32_t packed_regions_of(const typename Traits::Values& y, const typename Traits::Values& cap) {
  using Number = typename Traits::Number;
  constexpr int kVec = Traits::kVec;
  if constexpr (kInPairs<Traits>) {
    const auto ys = bit_cast<Pairs<Traits>>(y), caps = bit_cast<Pairs<Traits>>(cap);
    uint32_t inside = 0, capped = 0;  // of element 2 w and, 16 bits above, 2 w + 1: at bit 4 w
#pragma unroll
    for (int w = 0; w < kVec / 2; ++w) {
      const Regions regions = regions_of_two<Number>(ys.v[w], caps.v[w]);
      inside |= regions.inside >> (15 - 4 * w);
      capped |= regions.capped >> (15 - 4 * w);
    }
    const uint32_t region_bits = inside * kInside | capped * kCapped;
    return (region_bits | region_bits >> 14) & 0xffff;
  } else {
    uint32_t region_bits = 0;
#pragma unroll
    for (int e = 0; e < kVec; ++e) region_bits |= static_cast<uint32_t>(region_of<Number>(y.v[e], cap.v[e])) << (2 * e);
    return region_bits;
  }
}

// Writes the packed regions of the first n elements of a vector, which begins at a whole byte; the rest of the last
// byte is off.
template <class Traits>
DRELUOP_DEVICE void write_mask(uint8_t* mask, int64_t i, int n, uint32_t region_bits) {
  uint8_t* to = mask + i / kElementsPerByte;
  if (n < Traits::kVec) region_bits &= (1u << (2 * n)) - 1;
  if constexpr (Traits::kVec == 2 * kElementsPerByte) {
    if (n == Traits::kVec && reinterpret_cast<uintptr_t>(to) % 2 == 0) {
      *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(region_bits);
      return;
    }
  }
#pragma unroll
  for (int b = 0; b < Traits::kVec / kElementsPerByte; ++b)
    if (b * kElementsPerByte < n) to[b] = static_cast<uint8_t>(region_bits >> (8 * b));
}

}  // namespace dreluop::cuda
