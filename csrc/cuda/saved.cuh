// What forward left for backward: a vector of the output, or of the packed mask, as questions about its elements.
#pragma once

#include "cuda/caps.cuh"
#include "cuda/pair_arithmetic.cuh"
#include "dreluop/semantics.h"

namespace dreluop::cuda {

// The packed regions of a vector, at an address that is a multiple of their bytes.
template <int kVec>
DRELUOP_DEVICE uint32_t packed_regions_at(const uint8_t* mask, int64_t i) {
  const uint8_t* from = mask + i / kElementsPerByte;
  if constexpr (kVec == 2 * kElementsPerByte) return *reinterpret_cast<const uint16_t*>(from);
  return *from;
}

// kEither is decided at run time.
enum class Saved : uint8_t { kOutput, kMask, kEither };

template <class Traits, int kVec, Saved kSaved>
struct SavedVec {
  using T = typename Traits::Storage;
  static constexpr int kBatches = kSaved == Saved::kMask ? 2 : 1;
  uint32_t region_bits;

  DRELUOP_DEVICE static SavedVec nothing() { return {0}; }

  template <class Reader>
  DRELUOP_DEVICE static SavedVec load(const Reader& reader, int64_t i, int n, const Pack<T, kVec>& caps) {
    SavedVec result{0};
    if constexpr (kSaved == Saved::kMask) {
      result.region_bits = packed_regions_at<kVec>(reader.mask, i);
    } else {
#pragma unroll
      for (int e = 0; e < kVec; ++e)
        if (e < n)
          result.region_bits |= static_cast<uint32_t>(reader.template region<Traits>(i + e, caps.v[e])) << (2 * e);
    }
    return result;
  }
  DRELUOP_DEVICE WhereRegions<T, kVec> where(const Pack<T, kVec>&) const { return where_regions<T, kVec>(region_bits); }
};

template <class Traits, int kVec>
struct SavedVec<Traits, kVec, Saved::kOutput> {
  using T = typename Traits::Storage;
  static constexpr int kBatches = 1;
  Vec<T, kVec> vec;

  DRELUOP_DEVICE static SavedVec nothing() { return {}; }

  template <class Reader>
  DRELUOP_DEVICE static SavedVec load(const Reader& reader, int64_t i, int n, const Pack<T, kVec>&) {
    return {reader.operands.template load<T, kVec>(Reader::kOutputOperand, i, n)};
  }
  DRELUOP_DEVICE WhereRegions<T, kVec> where(const Pack<T, kVec>& caps) const {
    return where_regions<Traits, kVec>(vec, caps);
  }
};

// Operands 0: gradient (or tangent) coming in, 1: y, 2: result.
template <Access kAccess>
struct SavedReader {
  static constexpr int kOutputOperand = 1;
  Operands<kAccess> operands;
  const uint8_t* mask;

  template <class Traits>
  DRELUOP_DEVICE uint8_t region(int64_t i, typename Traits::Storage cap) const {
    using T = typename Traits::Storage;
    if (mask != nullptr) return region_in_byte(mask[i / kElementsPerByte], static_cast<int>(i % kElementsPerByte));
    const auto y = Working<Traits>::upcast(operands.template at<T>(kOutputOperand, i));
    return region_of<typename Working<Traits>::Rule>(y, Working<Traits>::upcast(cap));
  }
};

}  // namespace dreluop::cuda
