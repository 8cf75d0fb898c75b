// The scalar rule on whole vectors: 16-bit numbers two to a word.
#pragma once

#include "cuda/access.cuh"
#include "dreluop/semantics.h"

namespace dreluop::cuda {

template <class Traits, int kVec>
DRELUOP_DEVICE Pack<typename Traits::Storage, kVec> capped_values(const Pack<typename Traits::Storage, kVec>& x,
                                                                  const Pack<typename Traits::Storage, kVec>& cap) {
  using Values = Pack<typename Traits::Storage, kVec>;
  if constexpr (sizeof(typename Traits::Storage) == 2) {
    using Words = Pack<uint32_t, kVec / 2>;
    auto words = bit_cast<Words>(x);
    const auto caps = bit_cast<Words>(cap);
#pragma unroll
    for (int w = 0; w < kVec / 2; ++w) words.v[w] = capped_values_of_two<Traits>(words.v[w], caps.v[w]);
    return bit_cast<Values>(words);
  } else {
    Values y;
#pragma unroll
    for (int e = 0; e < kVec; ++e) y.v[e] = capped_value<Traits>(x.v[e], cap.v[e]);
    return y;
  }
}

// The packed regions of a vector's outputs.
template <class Traits, int kVec>
DRELUOP_DEVICE uint32_t packed_regions_of(const Pack<typename Traits::Storage, kVec>& y,
                                          const Pack<typename Traits::Storage, kVec>& cap) {
  if constexpr (sizeof(typename Traits::Storage) == 2) {
    using Words = Pack<uint32_t, kVec / 2>;
    const auto ys = bit_cast<Words>(y), caps = bit_cast<Words>(cap);
    uint32_t inside = 0, capped = 0;  // of element 2 w and, 16 bits above, 2 w + 1: at bit 4 w
#pragma unroll
    for (int w = 0; w < kVec / 2; ++w) {
      const Regions regions = regions_of_two<Traits>(ys.v[w], caps.v[w]);
      inside |= regions.inside >> (15 - 4 * w);
      capped |= regions.capped >> (15 - 4 * w);
    }
    const uint32_t region_bits = inside * kInside | capped * kCapped;
    return (region_bits | region_bits >> 14) & 0xffff;
  } else {
    uint32_t region_bits = 0;
#pragma unroll
    for (int e = 0; e < kVec; ++e) region_bits |= static_cast<uint32_t>(region_of<Traits>(y.v[e], cap.v[e])) << (2 * e);
    return region_bits;
  }
}

// For which elements of a vector something holds; of 16-bit types as masks of two to a word.
template <class T, int kVec>
struct Where {
  bool v[kVec];
};
template <int kVec>
struct Where<uint16_t, kVec> {
  uint32_t v[kVec / 2];
};

template <class T, int kVec>
struct WhereRegions {
  Where<T, kVec> inside, capped;
};

// Of outputs of forward.
template <class Traits, int kVec>
DRELUOP_DEVICE WhereRegions<typename Traits::Storage, kVec> where_regions(
    const Vec<typename Traits::Storage, kVec>& y, const Pack<typename Traits::Storage, kVec>& cap) {
  using T = typename Traits::Storage;
  WhereRegions<T, kVec> where;
  if constexpr (sizeof(T) == 2) {
    using Words = Pack<uint32_t, kVec / 2>;
    const auto ys = bit_cast<Words>(y), caps = bit_cast<Words>(cap);
#pragma unroll
    for (int w = 0; w < kVec / 2; ++w) {
      const Regions masks = region_masks_of_two<Traits>(ys.v[w], caps.v[w]);
      where.inside.v[w] = masks.inside;
      where.capped.v[w] = masks.capped;
    }
  } else {
    const auto ys = unpack<T, kVec>(y);
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      where.inside.v[e] = is_inside<Traits>(ys.v[e], cap.v[e]);
      where.capped.v[e] = is_capped<Traits>(ys.v[e], cap.v[e]);
    }
  }
  return where;
}

// Packed regions: element e at bit 2 e.
template <class T, int kVec>
DRELUOP_DEVICE WhereRegions<T, kVec> where_regions(uint32_t region_bits) {
  WhereRegions<T, kVec> where;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int w = 0; w < kVec / 2; ++w) {
      const Regions masks = region_masks_of_packed_pair(region_bits, w);
      where.inside.v[w] = masks.inside;
      where.capped.v[w] = masks.capped;
    }
  } else {
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      where.inside.v[e] = (region_bits >> (2 * e)) & kInside;
      where.capped.v[e] = (region_bits >> (2 * e)) & kCapped;
    }
  }
  return where;
}

// The numbers of a there, else those of b.
template <class T, int kVec>
DRELUOP_DEVICE Vec<T, kVec> chosen(const Where<T, kVec>& where, const Vec<T, kVec>& a, const Vec<T, kVec>& b) {
  if constexpr (sizeof(T) == 2) {
    using Words = Pack<uint32_t, kVec / 2>;
    auto words = bit_cast<Words>(b);
    const auto others = bit_cast<Words>(a);
#pragma unroll
    for (int w = 0; w < kVec / 2; ++w) words.v[w] = (others.v[w] & where.v[w]) | (words.v[w] & ~where.v[w]);
    return bit_cast<Vec<T, kVec>>(words);
  } else {
    auto values = unpack<T, kVec>(b);
    const auto others = unpack<T, kVec>(a);
#pragma unroll
    for (int e = 0; e < kVec; ++e) values.v[e] = select(where.v[e], others.v[e], values.v[e]);
    return bit_cast<Vec<T, kVec>>(values);
  }
}

// The numbers of a vector there, else +0.
template <class T, int kVec>
DRELUOP_DEVICE Vec<T, kVec> only(const Where<T, kVec>& where, const Vec<T, kVec>& vec) {
  return chosen<T, kVec>(where, vec, Vec<T, kVec>{});
}

// Writes the packed regions of the first n elements of a vector, which begins at a whole byte; the rest of the last
// byte is off.
template <int kVec>
DRELUOP_DEVICE void write_mask(uint8_t* mask, int64_t i, int n, uint32_t region_bits) {
  uint8_t* to = mask + i / kElementsPerByte;
  if (n < kVec) region_bits &= (1u << (2 * n)) - 1;
  if constexpr (kVec == 2 * kElementsPerByte) {
    if (n == kVec && reinterpret_cast<uintptr_t>(to) % 2 == 0) {
      *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(region_bits);
      return;
    }
  }
#pragma unroll
  for (int b = 0; b < kVec / kElementsPerByte; ++b)
    if (b * kElementsPerByte < n) to[b] = static_cast<uint8_t>(region_bits >> (8 * b));
}

}  // namespace dreluop::cuda
