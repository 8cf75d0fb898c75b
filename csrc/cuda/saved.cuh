// What forward left for backward: a group of the output, or of codes, as questions about its elements.
#pragma once

#include "cuda/access.cuh"
#include "dreluop/semantics.h"

namespace dreluop::cuda {

// kEither is decided at run time.
enum class Saved : uint8_t { kOutput, kCode, kEither };

template <class Format, int kGroup, Saved kSaved>
struct SavedGroup {
  using T = typename Format::Storage;
  uint32_t codes;

  DRELUOP_DEVICE static SavedGroup nothing() { return {0}; }

  template <class Reader>
  DRELUOP_DEVICE static SavedGroup load(const Reader& reader, int64_t i, int n, const T* caps) {
    SavedGroup result{0};
    if constexpr (kSaved == Saved::kCode) {
      for (int b = 0; b < kGroup / kCodesPerByte; ++b)
        result.codes |= static_cast<uint32_t>(reader.code[i / kCodesPerByte + b]) << (8 * b);
    } else {
#pragma unroll
      for (int e = 0; e < kGroup; ++e)
        if (e < n) result.codes |= static_cast<uint32_t>(reader.template region<Format>(i + e, caps[e])) << (2 * e);
    }
    return result;
  }
  DRELUOP_DEVICE bool inside(int e, T) const { return (codes >> (2 * e)) & kInside; }
  DRELUOP_DEVICE bool capped(int e, T) const { return (codes >> (2 * e)) & kCapped; }
};

template <class Format, int kGroup>
struct SavedGroup<Format, kGroup, Saved::kOutput> {
  using T = typename Format::Storage;
  Group<T, kGroup> group;

  DRELUOP_DEVICE static SavedGroup nothing() { return {}; }

  template <class Reader>
  DRELUOP_DEVICE static SavedGroup load(const Reader& reader, int64_t i, int n, const T*) {
    return {reader.operands.template load<T, kGroup>(Reader::kOutputOperand, i, n)};
  }
  DRELUOP_DEVICE bool inside(int e, T m) const { return is_inside<Format>(unpack<T, kGroup>(group).v[e], m); }
  DRELUOP_DEVICE bool capped(int e, T m) const { return is_capped<Format>(unpack<T, kGroup>(group).v[e], m); }
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
    return region_of<Format>(operands.template at<T>(kOutputOperand, i), cap);
  }
};

}  // namespace dreluop::cuda
