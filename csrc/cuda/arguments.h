// From a caller's description of tensors to what kernels are given; refuses what no kernel can serve.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "cuda/cap_arrays.cuh"

namespace dreluop::cuda {

[[noreturn]] inline void refuse(const std::string& message) { throw std::invalid_argument(message); }

inline void check(const Problem& problem) {
  if (problem.rank < 0 || problem.rank > kMaxDims)
    refuse("x: got " + std::to_string(problem.rank) + " dimensions; expected at most " + std::to_string(kMaxDims));
  int64_t numel = 1, caps = 1;
  for (int d = 0; d < problem.rank; ++d) numel *= problem.sizes[d];
  for (int d = 0; d < problem.cap_rank; ++d) caps *= problem.cap_sizes[d];
  if (problem.numel() != numel) refuse("layout: its sizes do not multiply to those of x");
  if (caps != problem.layout.caps) refuse("cap_sizes: they do not multiply to the caps of the layout");
}

// What tells the regions: the mask, or y and the caps.
inline void check_saved(const Problem& problem, const Operand& y, const uint8_t* mask, const PerCap& cap) {
  if (problem.numel() == 0 || mask != nullptr) return;
  if (y.data == nullptr) refuse("y: missing, and there is no mask");
  if (cap.data == nullptr) refuse("cap: needed to tell regions from y");
}

// The caps that regions are decided with: none where nothing is capped.
inline PerCap region_caps(const PerCap& cap, Zeroed zeroed) { return zeroed & kZeroAbove ? PerCap{} : cap; }

inline bool is_dense(int rank, const int64_t* sizes, const int64_t* strides) {
  int64_t expected = 1;
  for (int d = rank - 1; d >= 0; --d) {
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

// Merges neighboring dimensions that all arrays traverse as one. sizes and strides shrink in place; at least one
// dimension is left. Gives the rank.
template <int kArrays, int kDims>
int merge_dimensions(int rank, const int64_t* sizes, const int64_t* const (&strides)[kArrays], int64_t (&merged)[kDims],
                     int64_t (&merged_strides)[kArrays][kDims], const char* name) {
  int count = 0;
  for (int d = 0; d < rank; ++d) {
    if (sizes[d] == 1) continue;
    bool joins = count > 0;
    for (int k = 0; k < kArrays && joins; ++k)
      joins = strides[k] == nullptr || merged_strides[k][count - 1] == strides[k][d] * sizes[d];
    if (!joins && count == kDims)
      refuse(std::string(name) + ": its memory has more than " + std::to_string(kDims) + " separate dimensions");
    if (!joins) merged[count++] = 1;
    merged[count - 1] *= sizes[d];
    for (int k = 0; k < kArrays; ++k) merged_strides[k][count - 1] = strides[k] == nullptr ? 0 : strides[k][d];
  }
  if (count == 0) {
    merged[0] = 1;
    for (int k = 0; k < kArrays; ++k) merged_strides[k][0] = 1;
    count = 1;
  }
  return count;
}

// Elements before the first one at a 16-byte boundary.
inline int64_t elements_to_boundary(const void* data, DType dtype) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  const int64_t size = size_of(dtype);
  if (address % static_cast<uintptr_t>(size) != 0) refuse("data: an address is no multiple of its element's size");
  return static_cast<int64_t>((16 - address % 16) % 16) / size;
}

// The operands of a pass, and how they can be read: all as aligned vectors after `head` elements, or not.
class OperandSet {
 public:
  OperandSet(const Problem& problem, std::initializer_list<Operand> operands) : problem_(problem), operands_(operands) {
    const bool any = problem.numel() > 0;
    bool first = true;
    for (const Operand& operand : operands_) {
      if (operand.data == nullptr || !any) continue;
      const int64_t misaligned = elements_to_boundary(operand.data, problem.dtype);
      vector_ = vector_ && is_dense(problem.rank, problem.sizes, operand.strides) && (first || misaligned == head_);
      head_ = misaligned;
      first = false;
    }
  }

  bool vector() const { return vector_; }
  int64_t head() const { return vector_ ? head_ : 0; }

  void fill(Operands<Access::kVector>* to) const {
    int k = 0;
    for (const Operand& operand : operands_) to->data[k++] = operand.data;
  }

  // `packed`: whether vectors begin at multiples of their size.
  void fill(Operands<Access::kGeneral>* to, bool packed = true) const {
    const int64_t* strides[kOperands] = {};
    int k = 0;
    for (const Operand& operand : operands_) {
      to->data[k] = operand.data;
      to->kind[k] = Kind::kStrided;
      if (operand.data != nullptr) {
        if (!is_dense(problem_.rank, problem_.sizes, operand.strides))
          strides[k] = operand.strides;
        else
          to->kind[k] =
              packed && elements_to_boundary(operand.data, problem_.dtype) == 0 ? Kind::kPacked : Kind::kLinear;
      }
      ++k;
    }
    int64_t sizes[kMaxDims];
    to->rank = merge_dimensions(problem_.rank, problem_.sizes, strides, sizes, to->strides, "x");
    for (int d = 0; d < to->rank; ++d) to->sizes[d] = FastDivmod::of(std::max<int64_t>(1, sizes[d]));
  }

 private:
  const Problem& problem_;
  std::vector<Operand> operands_;
  bool vector_ = true;
  int64_t head_ = 0;
};

inline CapMap cap_map(const CapLayout& layout) {
  const int64_t inner = std::max<int64_t>(1, layout.inner), caps = std::max<int64_t>(1, layout.caps);
  const int64_t outer = std::max<int64_t>(1, layout.outer);
  // By division, as an empty x may have any number of caps.
  const bool is_short = outer <= INT32_MAX / inner / caps;
  return {FastDivmod::of(inner), FastDivmod::of(caps), is_short};
}

// Arrays of one value per cap, with their dimensions merged together.
template <int kArrays>
CapIndex index_caps(const Problem& problem, const PerCap* const (&arrays)[kArrays], CapArray* const (&to)[kArrays]) {
  const int64_t* strides[kArrays];
  for (int k = 0; k < kArrays; ++k) strides[k] = arrays[k]->data == nullptr ? nullptr : arrays[k]->strides;
  int64_t sizes[kCapDims], merged[kArrays][kCapDims];
  CapIndex index;
  index.rank = merge_dimensions(problem.cap_rank, problem.cap_sizes, strides, sizes, merged, "cap");
  for (int d = 0; d < index.rank; ++d) index.sizes[d] = FastDivmod::of(std::max<int64_t>(1, sizes[d]));
  for (int k = 0; k < kArrays; ++k) {
    to[k]->data = arrays[k]->data;
    to[k]->dtype = arrays[k]->dtype;
    for (int d = 0; d < index.rank; ++d) to[k]->strides[d] = merged[k][d];
  }
  return index;
}

// One array as elementwise passes read it.
struct CapReading {
  CapReading(const Problem& problem, const PerCap& values) : given(values) {
    const PerCap* const from[] = {&values};
    CapArray* const to[] = {&array};
    index = index_caps(problem, from, to);
  }

  bool present() const { return given.data != nullptr; }
  // What CapSource<kVector> reads.
  bool simple(DType dtype) const {
    return !present() || (index.rank == 1 && (array.dtype == dtype || array.dtype == DType::kFloat32));
  }
  bool aligned() const {
    return !present() || (array.strides[0] == 1 && reinterpret_cast<uintptr_t>(given.data) % 16 == 0);
  }
  void fill(CapSource<Access::kVector>* to) const {
    *to = {given.data, array.strides[0], array.dtype == DType::kFloat32};
  }
  void fill(CapSource<Access::kGeneral>* to) const { *to = {index, array, given.data}; }

  PerCap given;
  CapIndex index;
  CapArray array;
};

}  // namespace dreluop::cuda
