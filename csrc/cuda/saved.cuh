// What forward left for backward: a group of the output, or of codes, as questions about its elements.
#pragma once

#include "cuda/caps.cuh"
#include "cuda/packed.cuh"
#include "dreluop/semantics.h"

namespace dreluop::cuda {

// The codes of a group, at an address that is a multiple of their bytes.
template <int kGroup>
DRELUOP_DEVICE uint32_t codes_at(const uint8_t* code, int64_t i) {
  const uint8_t* from = code + i / kCodesPerByte;
  if constexpr (kGroup == 2 * kCodesPerByte) return *reinterpret_cast<const uint16_t*>(from);
  return *from;
}

// kEither is decided at run time.
enum class Saved : uint8_t { kOutput, kCode, kEither };

template <class Format, int kGroup, Saved kSaved>
struct SavedGroup {
  using T = typename Format::Storage;
  static constexpr int kBatches = kSaved == Saved::kCode ? 2 : 1;
  uint32_t codes;

  DRELUOP_DEVICE static SavedGroup nothing() { return {0}; }

  template <class Reader>
  DRELUOP_DEVICE static SavedGroup load(const Reader& reader, int64_t i, int n, const Pack<T, kGroup>& caps) {
    SavedGroup result{0};
    if constexpr (kSaved == Saved::kCode) {
      result.codes = codes_at<kGroup>(reader.code, i);
    } else {
#pragma unroll
      for (int e = 0; e < kGroup; ++e)
        if (e < n) result.codes |= static_cast<uint32_t>(reader.template region<Format>(i + e, caps.v[e])) << (2 * e);
    }
    return result;
  }
  DRELUOP_DEVICE WhereRegions<T, kGroup> where(const Pack<T, kGroup>&) const { return where_regions<T, kGroup>(codes); }
};

template <class Format, int kGroup>
struct SavedGroup<Format, kGroup, Saved::kOutput> {
  using T = typename Format::Storage;
  static constexpr int kBatches = 1;
  Group<T, kGroup> group;

  DRELUOP_DEVICE static SavedGroup nothing() { return {}; }

  template <class Reader>
  DRELUOP_DEVICE static SavedGroup load(const Reader& reader, int64_t i, int n, const Pack<T, kGroup>&) {
    return {reader.operands.template load<T, kGroup>(Reader::kOutputOperand, i, n)};
  }
  DRELUOP_DEVICE WhereRegions<T, kGroup> where(const Pack<T, kGroup>& caps) const {
    return where_regions<Format, kGroup>(group, caps);
  }
};

// Operands 0: gradient (or tangent) coming in, 1: y, 2: result.
template <Access kAccess>
struct SavedReader {
  static constexpr int kOutputOperand = 1;
  Operands<kAccess> operands;
  const uint8_t* code;

  template <class Format>
  DRELUOP_DEVICE uint8_t region(int64_t i, typename Format::Storage cap) const {
    using T = typename Format::Storage;
    if (code != nullptr) return region_in_byte(code[i / kCodesPerByte], static_cast<int>(i % kCodesPerByte));
    const auto y = Working<Format>::widen(operands.template at<T>(kOutputOperand, i));
    return region_of<typename Working<Format>::Rule>(y, Working<Format>::widen(cap));
  }
};

}  // namespace dreluop::cuda
