// What forward left for backward: a vector of the output, or of the packed mask, as questions about its elements.
#pragma once

#include "cuda/cap_arrays.cuh"
#include "cuda/pair_arithmetic.cuh"

namespace dreluop::cuda {

// For which elements of a vector something holds; of 16-bit types as masks of two to a word.
template <class Traits, bool kPairs = kInPairs<Traits>>
struct Where {
  bool v[Traits::kVec];
};
template <class Traits>
struct Where<Traits, true> {
  uint32_t v[Traits::kVec / 2];
};

template <class Traits>
struct WhereRegions {
  Where<Traits> inside, capped;
};

// Of outputs of forward.
template <class Traits>
DRELUOP_DEVICE WhereRegions<Traits> where_regions(const typename Traits::Vec& y, const typename Traits::Values& cap) {
  using Number = typename Traits::Number;
  WhereRegions<Traits> where;
  if constexpr (kInPairs<Traits>) {
    const auto ys = bit_cast<Pairs<Traits>>(y), caps = bit_cast<Pairs<Traits>>(cap);
#pragma unroll
    for (int w = 0; w < Traits::kVec / 2; ++w) {
      const Regions masks = region_masks_of_two<Number>(ys.v[w], caps.v[w]);
      where.inside.v[w] = masks.inside;
      where.capped.v[w] = masks.capped;
    }
  } else {
    const auto ys = unpack<Traits>(y);
#pragma unroll
    for (int e = 0; e < Traits::kVec; ++e) {
      where.inside.v[e] = is_inside<Number>(ys.v[e], cap.v[e]);
      where.capped.v[e] = is_capped<Number>(ys.v[e], cap.v[e]);
    }
  }
  return where;
}

// Packed regions: element e at bit 2 e.
template <class Traits>
DRELUOP_DEVICE WhereRegions<Traits> where_regions(uint32_t region_bits) {
  WhereRegions<Traits> where;
  if constexpr (kInPairs<Traits>) {
#pragma unroll
    for (int w = 0; w < Traits::kVec / 2; ++w) {
      const Regions masks = region_masks_of_packed_pair(region_bits, w);
      where.inside.v[w] = masks.inside;
      where.capped.v[w] = masks.capped;
    }
  } else {
#pragma unroll
    for (int e = 0; e < Traits::kVec; ++e) {
      where.inside.v[e] = (region_bits >> (2 * e)) & kInside;
      where.capped.v[e] = (region_bits >> (2 * e)) & kCapped;
    }
  }
  return where;
}

// The numbers of a there, else those of b.
template <class Traits>
DRELUOP_DEVICE typename Traits::Vec chosen(const Where<Traits>& where, const typename Traits::Vec& a,
                                           const typename Traits::Vec& b) {
  if constexpr (kInPairs<Traits>) {
    auto words = bit_cast<Pairs<Traits>>(b);
    const auto others = bit_cast<Pairs<Traits>>(a);
#pragma unroll
    for (int w = 0; w < Traits::kVec / 2; ++w) words.v[w] = (others.v[w] & where.v[w]) | (words.v[w] & ~where.v[w]);
    return bit_cast<typename Traits::Vec>(words);
  } else {
    auto values = unpack<Traits>(b);
    const auto others = unpack<Traits>(a);
#pragma unroll
    for (int e = 0; e < Traits::kVec; ++e) values.v[e] = select(where.v[e], others.v[e], values.v[e]);
    return bit_cast<typename Traits::Vec>(values);
  }
}

// The numbers of a vector there, else +0.
template <class Traits>
DRELUOP_DEVICE typename Traits::Vec only(const Where<Traits>& where, const typename Traits::Vec& vec) {
  return chosen<Traits>(where, vec, {});
}

// The packed regions of a vector, at an address that is a multiple of their bytes.
template <class Traits>
DRELUOP_DEVICE uint32_t packed_regions_at(const uint8_t* mask, int64_t i) {
  const uint8_t* from = mask + i / kElementsPerByte;
  if constexpr (Traits::kVec == 2 * kElementsPerByte) return *reinterpret_cast<const uint16_t*>(from);
  return *from;
}

// kEither is decided at run time.
enum class Saved : uint8_t { kOutput, kMask, kEither };

template <class Traits, Saved kSaved>
struct SavedVec {
  static constexpr int kBatches = kSaved == Saved::kMask ? 2 : 1;
  uint32_t region_bits;

  DRELUOP_DEVICE static SavedVec nothing() { return {0}; }

  template <class Reader>
  DRELUOP_DEVICE static SavedVec load(const Reader& reader, int64_t i, int n, const typename Traits::Values& caps) {
    SavedVec result{0};
    if constexpr (kSaved == Saved::kMask) {
      result.region_bits = packed_regions_at<Traits>(reader.mask, i);
    } else {
#pragma unroll
      for (int e = 0; e < Traits::kVec; ++e)
        if (e < n)
          result.region_bits |= static_cast<uint32_t>(reader.template region<Traits>(i + e, caps.v[e])) << (2 * e);
    }
    return result;
  }
  DRELUOP_DEVICE WhereRegions<Traits> where(const typename Traits::Values&) const {
    return where_regions<Traits>(region_bits);
  }
};

template <class Traits>
struct SavedVec<Traits, Saved::kOutput> {
  static constexpr int kBatches = 1;
  typename Traits::Vec vec;

  DRELUOP_DEVICE static SavedVec nothing() { return {}; }

  template <class Reader>
  DRELUOP_DEVICE static SavedVec load(const Reader& reader, int64_t i, int n, const typename Traits::Values&) {
    return {reader.operands.template load<Traits>(Reader::kOutputOperand, i, n)};
  }
  DRELUOP_DEVICE WhereRegions<Traits> where(const typename Traits::Values& caps) const {
    return where_regions<Traits>(vec, caps);
  }
};

// Operands 0: the gradient (or tangent) coming in, 1: y, 2: the result.
template <Access kAccess>
struct SavedReader {
  static constexpr int kOutputOperand = 1;
  Operands<kAccess> operands;
  const uint8_t* mask;

  template <class Traits>
  DRELUOP_DEVICE uint8_t region(int64_t i, typename Traits::T cap) const {
    if (mask != nullptr) return region_in_byte(mask[i / kElementsPerByte], static_cast<int>(i % kElementsPerByte));
    const auto y = Traits::upcast(operands.template at<Traits>(kOutputOperand, i));
    return region_of<typename Traits::Rule>(y, Traits::upcast(cap));
  }
};

}  // namespace dreluop::cuda
