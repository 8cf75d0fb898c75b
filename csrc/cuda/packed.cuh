// The scalar rule on whole groups: 16-bit numbers two to a word.
#pragma once

#include "cuda/access.cuh"
#include "dreluop/semantics.h"

namespace dreluop::cuda {

template <class Format, int kGroup>
DRELUOP_DEVICE Pack<typename Format::Storage, kGroup> capped_values(const Pack<typename Format::Storage, kGroup>& x,
                                                                    const Pack<typename Format::Storage, kGroup>& cap) {
  using Values = Pack<typename Format::Storage, kGroup>;
  if constexpr (sizeof(typename Format::Storage) == 2) {
    using Words = Pack<uint32_t, kGroup / 2>;
    auto words = bit_cast<Words>(x);
    const auto caps = bit_cast<Words>(cap);
#pragma unroll
    for (int w = 0; w < kGroup / 2; ++w) words.v[w] = capped_values_of_two<Format>(words.v[w], caps.v[w]);
    return bit_cast<Values>(words);
  } else {
    Values y;
#pragma unroll
    for (int e = 0; e < kGroup; ++e) y.v[e] = capped_value<Format>(x.v[e], cap.v[e]);
    return y;
  }
}

// The codes of a group's outputs.
template <class Format, int kGroup>
DRELUOP_DEVICE uint32_t codes_of(const Pack<typename Format::Storage, kGroup>& y,
                                 const Pack<typename Format::Storage, kGroup>& cap) {
  if constexpr (sizeof(typename Format::Storage) == 2) {
    using Words = Pack<uint32_t, kGroup / 2>;
    const auto ys = bit_cast<Words>(y), caps = bit_cast<Words>(cap);
    uint32_t inside = 0, capped = 0;  // of element 2 w and, 16 bits above, 2 w + 1: at bit 4 w
#pragma unroll
    for (int w = 0; w < kGroup / 2; ++w) {
      const Regions regions = regions_of_two<Format>(ys.v[w], caps.v[w]);
      inside |= regions.inside >> (15 - 4 * w);
      capped |= regions.capped >> (15 - 4 * w);
    }
    const uint32_t codes = inside * kInside | capped * kCapped;
    return (codes | codes >> 14) & 0xffff;
  } else {
    uint32_t codes = 0;
#pragma unroll
    for (int e = 0; e < kGroup; ++e) codes |= static_cast<uint32_t>(region_of<Format>(y.v[e], cap.v[e])) << (2 * e);
    return codes;
  }
}

// For which elements of a group something holds; of 16-bit types as masks of two to a word.
template <class T, int kGroup>
struct Where {
  bool v[kGroup];
};
template <int kGroup>
struct Where<uint16_t, kGroup> {
  uint32_t v[kGroup / 2];
};

template <class T, int kGroup>
struct WhereRegions {
  Where<T, kGroup> inside, capped;
};

// Of outputs of forward.
template <class Format, int kGroup>
DRELUOP_DEVICE WhereRegions<typename Format::Storage, kGroup> where_regions(
    const Group<typename Format::Storage, kGroup>& y, const Pack<typename Format::Storage, kGroup>& cap) {
  using T = typename Format::Storage;
  WhereRegions<T, kGroup> where;
  if constexpr (sizeof(T) == 2) {
    using Words = Pack<uint32_t, kGroup / 2>;
    const auto ys = bit_cast<Words>(y), caps = bit_cast<Words>(cap);
#pragma unroll
    for (int w = 0; w < kGroup / 2; ++w) {
      const Regions masks = region_masks_of_two<Format>(ys.v[w], caps.v[w]);
      where.inside.v[w] = masks.inside;
      where.capped.v[w] = masks.capped;
    }
  } else {
    const auto ys = unpack<T, kGroup>(y);
#pragma unroll
    for (int e = 0; e < kGroup; ++e) {
      where.inside.v[e] = is_inside<Format>(ys.v[e], cap.v[e]);
      where.capped.v[e] = is_capped<Format>(ys.v[e], cap.v[e]);
    }
  }
  return where;
}

// Of codes, element e at bit 2 e.
template <class T, int kGroup>
DRELUOP_DEVICE WhereRegions<T, kGroup> where_regions(uint32_t codes) {
  WhereRegions<T, kGroup> where;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int w = 0; w < kGroup / 2; ++w) {
      const Regions masks = region_masks_of_two_codes(codes, w);
      where.inside.v[w] = masks.inside;
      where.capped.v[w] = masks.capped;
    }
  } else {
#pragma unroll
    for (int e = 0; e < kGroup; ++e) {
      where.inside.v[e] = (codes >> (2 * e)) & kInside;
      where.capped.v[e] = (codes >> (2 * e)) & kCapped;
    }
  }
  return where;
}

// The numbers of a there, else those of b.
template <class T, int kGroup>
DRELUOP_DEVICE Group<T, kGroup> chosen(const Where<T, kGroup>& where, const Group<T, kGroup>& a,
                                       const Group<T, kGroup>& b) {
  if constexpr (sizeof(T) == 2) {
    using Words = Pack<uint32_t, kGroup / 2>;
    auto words = bit_cast<Words>(b);
    const auto others = bit_cast<Words>(a);
#pragma unroll
    for (int w = 0; w < kGroup / 2; ++w) words.v[w] = (others.v[w] & where.v[w]) | (words.v[w] & ~where.v[w]);
    return bit_cast<Group<T, kGroup>>(words);
  } else {
    auto values = unpack<T, kGroup>(b);
    const auto others = unpack<T, kGroup>(a);
#pragma unroll
    for (int e = 0; e < kGroup; ++e) values.v[e] = select(where.v[e], others.v[e], values.v[e]);
    return bit_cast<Group<T, kGroup>>(values);
  }
}

// The numbers of a group there, else +0.
template <class T, int kGroup>
DRELUOP_DEVICE Group<T, kGroup> only(const Where<T, kGroup>& where, const Group<T, kGroup>& group) {
  return chosen<T, kGroup>(where, group, Group<T, kGroup>{});
}

// The codes of the first n elements of a group, which begins at a whole byte; what follows n in the last byte is off.
template <int kGroup>
DRELUOP_DEVICE void write_codes(uint8_t* code, int64_t i, int n, uint32_t codes) {
  uint8_t* to = code + i / kCodesPerByte;
  if (n < kGroup) codes &= (1u << (2 * n)) - 1;
  if constexpr (kGroup == 2 * kCodesPerByte) {
    if (n == kGroup && reinterpret_cast<uintptr_t>(to) % 2 == 0) {
      *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(codes);
      return;
    }
  }
#pragma unroll
  for (int b = 0; b < kGroup / kCodesPerByte; ++b)
    if (b * kCodesPerByte < n) to[b] = static_cast<uint8_t>(codes >> (8 * b));
}

}  // namespace dreluop::cuda
