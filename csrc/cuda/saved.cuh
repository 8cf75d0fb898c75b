// What forward left for backward: a group of the output, or of codes, as questions about its elements.
#pragma once

#include "cuda/caps.cuh"
#include "dreluop/semantics.h"

namespace dreluop::cuda {

// The codes of a group, which begins at a whole byte.
template <int kGroup>
DRELUOP_DEVICE uint32_t codes_at(const uint8_t* code, int64_t i) {
  const uint8_t* from = code + i / kCodesPerByte;
  if constexpr (kGroup == 2 * kCodesPerByte)
    if (reinterpret_cast<uintptr_t>(from) % 2 == 0) return *reinterpret_cast<const uint16_t*>(from);
  uint32_t codes = 0;
#pragma unroll
  for (int b = 0; b < kGroup / kCodesPerByte; ++b) codes |= static_cast<uint32_t>(from[b]) << (8 * b);
  return codes;
}

// kEither is decided at run time.
enum class Saved : uint8_t { kOutput, kCode, kEither };

template <class Format, int kGroup, Saved kSaved>
struct SavedGroup {
  using Real = typename Working<Format>::Real;
  uint32_t codes;

  DRELUOP_DEVICE static SavedGroup nothing() { return {0}; }

  template <class Reader>
  DRELUOP_DEVICE static SavedGroup load(const Reader& reader, int64_t i, int n, const Real* caps) {
    SavedGroup result{0};
    if constexpr (kSaved == Saved::kCode) {
      result.codes = codes_at<kGroup>(reader.code, i);
    } else {
#pragma unroll
      for (int e = 0; e < kGroup; ++e)
        if (e < n) result.codes |= static_cast<uint32_t>(reader.template region<Format>(i + e, caps[e])) << (2 * e);
    }
    return result;
  }
  DRELUOP_DEVICE bool inside(int e, Real) const { return (codes >> (2 * e)) & kInside; }
  DRELUOP_DEVICE bool capped(int e, Real) const { return (codes >> (2 * e)) & kCapped; }
};

template <class Format, int kGroup>
struct SavedGroup<Format, kGroup, Saved::kOutput> {
  using T = typename Format::Storage;
  using Real = typename Working<Format>::Real;
  using Rule = typename Working<Format>::Rule;
  Group<T, kGroup> group;

  DRELUOP_DEVICE static SavedGroup nothing() { return {}; }

  template <class Reader>
  DRELUOP_DEVICE static SavedGroup load(const Reader& reader, int64_t i, int n, const Real*) {
    return {reader.operands.template load<T, kGroup>(Reader::kOutputOperand, i, n)};
  }
  DRELUOP_DEVICE bool inside(int e, Real m) const { return is_inside<Rule>(widened<Format, kGroup>(group).v[e], m); }
  DRELUOP_DEVICE bool capped(int e, Real m) const { return is_capped<Rule>(widened<Format, kGroup>(group).v[e], m); }
};

// Operands 0: gradient (or tangent) coming in, 1: y, 2: result.
template <Access kAccess>
struct SavedReader {
  static constexpr int kOutputOperand = 1;
  Operands<kAccess> operands;
  const uint8_t* code;

  template <class Format>
  DRELUOP_DEVICE uint8_t region(int64_t i, typename Working<Format>::Real cap) const {
    using T = typename Format::Storage;
    if (code != nullptr) return region_in_byte(code[i / kCodesPerByte], static_cast<int>(i % kCodesPerByte));
    const auto y = Working<Format>::widen(operands.template at<T>(kOutputOperand, i));
    return region_of<typename Working<Format>::Rule>(y, cap);
  }
};

}  // namespace dreluop::cuda
