// How a pass over an activation is cut into CUDA blocks: pure arithmetic, no device calls.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <stdexcept>

#include "dreluop/dtype_traits.h"
#include "dreluop/layout.h"

namespace dreluop::cuda {

constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;
constexpr int kWarp = 32;

// Elements of a vector, which one thread reads and writes with 16-byte accesses: at least four, so that the regions of
// a vector are whole bytes.
constexpr int vec_of(DType dtype) { return dtype == DType::kFloat16 || dtype == DType::kBFloat16 ? 8 : 4; }

// Vecs whose loads one thread issues before it uses any: four loads, which hide the memory's latency.
constexpr int kInFlight = 4;
constexpr int kInFlightOfTwo = kInFlight / 2;  // operands

inline int64_t up_to(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t checked_blocks(int64_t blocks) {
  if (blocks > kMaxBlocks) throw std::invalid_argument("x: too many elements for one CUDA grid");
  return blocks;
}

// Elementwise passes: `head` elements up to the first aligned vector, whole vectors, the rest.
constexpr int kFlatThreads = 256;
struct FlatPlan {
  int64_t numel = 0;
  int64_t head = 0;
  int64_t vecs = 0;
  int per_thread = 1;  // vectors
  int64_t blocks = 0;  // each takes kFlatThreads * per_thread vectors; the last one also takes head and rest
};

// multiprocessors: of a device that small tensors are to fill, by threads with fewer vectors; 0 for none.
inline FlatPlan flat_plan(DType dtype, int64_t numel, int64_t head, int in_flight, int64_t multiprocessors = 0) {
  FlatPlan plan;
  plan.numel = numel;
  plan.head = std::min(head, numel);
  plan.vecs = (numel - plan.head) / vec_of(dtype);
  const int64_t most = up_to(numel - plan.head, int64_t{vec_of(dtype)} * kFlatThreads);  // blocks
  plan.per_thread = in_flight;
  if (multiprocessors > 0)
    plan.per_thread = static_cast<int>(std::clamp<int64_t>(most / (2 * multiprocessors), 1, in_flight));
  if (numel > 0) plan.blocks = checked_blocks(std::max<int64_t>(1, up_to(most, plan.per_thread)));
  return plan;
}

// How an elementwise pass finds the caps of a vector.
enum class CapMode : uint8_t {
  kSpan,     // a vector lies in one run of `inner` elements, or over the border of two
  kAligned,  // one cap per element, and vectors never wrap around
  kEach,     // any other
};

inline CapMode cap_mode(DType dtype, const CapLayout& layout, int64_t head) {
  if (layout.inner >= vec_of(dtype)) return CapMode::kSpan;
  return layout.inner == 1 && layout.caps % vec_of(dtype) == 0 && head == 0 ? CapMode::kAligned : CapMode::kEach;
}

// One cap is one run, whatever the layout that it came from.
inline CapLayout merged(const CapLayout& layout) {
  return layout.caps == 1 ? CapLayout{1, 1, layout.outer * layout.inner} : layout;
}

// The penalty inside the forward launch: blocks that sum squares of caps.
constexpr int64_t kSquaresPerBlock = 8192;
constexpr int64_t kMostPenaltyBlocks = 64;
inline int64_t penalty_blocks(int64_t caps) {
  return std::clamp<int64_t>(up_to(caps, kSquaresPerBlock), 1, kMostPenaltyBlocks);
}

}  // namespace dreluop::cuda
