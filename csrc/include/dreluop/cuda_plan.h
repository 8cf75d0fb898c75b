// How a pass over an activation is cut into CUDA blocks: pure arithmetic, no device calls.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <stdexcept>

#include "dreluop/formats.h"
#include "dreluop/layout.h"

namespace dreluop::cuda {

constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;
constexpr int kWarp = 32;

// Elements of a group, which one thread reads and writes with 16-byte accesses: at least four, so that the codes of a
// group are whole bytes.
constexpr int group_of(DType dtype) { return dtype == DType::kFloat16 || dtype == DType::kBFloat16 ? 8 : 4; }

// Groups whose loads one thread issues before it uses any: four loads, which hide the memory's latency.
constexpr int kInFlight = 4;
constexpr int kInFlightOfTwo = 2;  // operands

inline int64_t up_to(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t checked_blocks(int64_t blocks) {
  if (blocks > kMaxBlocks) throw std::invalid_argument("x: too many elements for one CUDA grid");
  return blocks;
}

// Elementwise passes: `head` elements up to the first aligned group, whole groups, the rest.
constexpr int kFlatThreads = 256;
struct FlatPlan {
  int64_t numel = 0;
  int64_t head = 0;
  int64_t groups = 0;
  int per_thread = 1;  // groups
  int64_t blocks = 0;  // each takes kFlatThreads * per_thread groups; the last one also takes head and rest
};

// multiprocessors: of a device that small tensors are to fill, by threads with fewer groups; 0 for none.
inline FlatPlan flat_plan(DType dtype, int64_t numel, int64_t head, int in_flight, int64_t multiprocessors = 0) {
  FlatPlan plan;
  plan.numel = numel;
  plan.head = std::min(head, numel);
  plan.groups = (numel - plan.head) / group_of(dtype);
  const int64_t most = up_to(numel - plan.head, int64_t{group_of(dtype)} * kFlatThreads);  // blocks
  plan.per_thread = in_flight;
  if (multiprocessors > 0)
    plan.per_thread = static_cast<int>(std::clamp<int64_t>(most / (2 * multiprocessors), 1, in_flight));
  if (numel > 0) plan.blocks = checked_blocks(std::max<int64_t>(1, up_to(most, plan.per_thread)));
  return plan;
}

// How an elementwise pass finds the caps of a group.
enum class CapMode : uint8_t {
  kSpan,     // a group lies in one run of `inner` elements, or over the border of two
  kAligned,  // one cap per element, and groups never wrap around
  kEach,     // any other
};

inline CapMode cap_mode(DType dtype, const CapLayout& layout, int64_t head) {
  if (layout.inner >= group_of(dtype)) return CapMode::kSpan;
  return layout.inner == 1 && layout.caps % group_of(dtype) == 0 && head == 0 ? CapMode::kAligned : CapMode::kEach;
}

// One cap is one run, whatever the layout that it came from.
inline CapLayout merged(const CapLayout& layout) {
  return layout.caps == 1 ? CapLayout{1, 1, layout.outer * layout.inner} : layout;
}

// Long runs of one cap. The elements of a cap, its runs one after the other, are shared out to warps: warp w of block b
// has the share (b / caps) * kRowWarps + w of cap b % caps.
constexpr int kRowThreads = 256;
constexpr int kRowWarps = kRowThreads / kWarp;
struct RowPlan {
  int64_t total = 0;  // elements of a cap
  int64_t share = 1;  // whole groups
  int64_t splits = 1;
  int64_t blocks = 0;
};

// Elements in walking order as rows of `row` = repeat * caps * inner elements. A block takes `width` groups of columns
// (whole caps) and `per_block` rows, of which every `height`-th is one thread's. Block b has tile b % tiles.
constexpr int kColumnThreads = 256;
struct ColumnPlan {
  bool aligned = true;  // rows are whole groups; else the last group of a row is cut off
  int64_t repeat = 1;
  int64_t row = 1;
  int64_t rows = 0;    // whole ones
  int64_t groups = 1;  // of a row
  int width = 1;
  int height = 1;
  int64_t tiles = 1;
  int64_t tile_caps = 1;  // caps of a tile, the last one may have fewer
  int64_t per_block = 1;
  int64_t row_blocks = 1;
  int64_t blocks = 0;
};

struct BackwardPlan {
  bool by_rows = false;
  RowPlan rows;
  ColumnPlan columns;
  int64_t cap_blocks = 1;  // blocks that share a cap: as many partial sums per cap, none if it is one
  int64_t counters = 0;    // one per set of caps finished together
  int64_t partials = 0;    // per kind of sum
  int64_t blocks = 0;
};

// Blocks that a multiprocessor holds at once, given what registers allow.
constexpr int64_t kRowBlocksPerProcessor = 4;
constexpr int64_t kColumnBlocksPerProcessor = 3;
constexpr int64_t kLeastRows = 16;  // of a block that shares its caps
constexpr int64_t kLeastRounds = 1;
constexpr int64_t kMostRounds = 8;
constexpr int64_t kWellFilled = 95;  // per cent of the places of a round, over all rounds
constexpr int64_t kWidth = 32;       // groups side by side: whole lines of memory

// Blocks for each of `sets`, so that the last round of blocks on the device is nearly full: the fewest that fill well,
// or the best found.
inline int64_t splits_wanted(int64_t sets, int64_t resident) {
  int64_t best = 1, best_filled = 0;
  for (int64_t rounds = kLeastRounds; rounds <= kMostRounds && best_filled < kWellFilled; ++rounds) {
    const int64_t splits = std::max<int64_t>(1, rounds * resident / sets);
    const int64_t filled = 100 * sets * splits / (up_to(sets * splits, resident) * resident);
    if (filled > best_filled) best = splits, best_filled = filled;
  }
  return best;
}

inline RowPlan row_plan(DType dtype, const CapLayout& layout, int64_t multiprocessors) {
  RowPlan plan;
  plan.total = layout.outer * layout.inner;
  const int64_t group = group_of(dtype), batch = kWarp * kInFlightOfTwo * group;
  const int64_t wanted = splits_wanted(layout.caps, kRowBlocksPerProcessor * multiprocessors);
  // A warp with less than a batch would have lanes without work.
  const int64_t most = std::max<int64_t>(1, up_to(plan.total, kRowWarps * batch));
  plan.share = std::max<int64_t>(1, up_to(up_to(plan.total, std::min(wanted, most) * kRowWarps), group)) * group;
  plan.splits = std::max<int64_t>(1, up_to(plan.total, plan.share * kRowWarps));
  plan.blocks = layout.caps > 0 && plan.splits > kMaxBlocks / layout.caps ? kMaxBlocks + 1 : layout.caps * plan.splits;
  return plan;
}

// Groups after which the borders of groups and of caps meet again.
inline int64_t cap_unit(DType dtype, const CapLayout& layout) {
  return layout.inner / std::gcd(layout.inner, int64_t{group_of(dtype)});
}

// Rows repeated until they are whole groups.
inline int64_t least_repeat(DType dtype, const CapLayout& layout) {
  const int64_t group = group_of(dtype);
  return group / std::gcd(layout.caps * layout.inner, group);
}

constexpr int64_t kWidestTile = kColumnThreads;

inline bool fits_one_tile(DType dtype, const CapLayout& layout) {
  return least_repeat(dtype, layout) * layout.caps * layout.inner <= kWidestTile * group_of(dtype);
}

inline bool runs_by_rows(DType dtype, const CapLayout& layout) {
  return layout.caps == 1 || (!fits_one_tile(dtype, layout) && cap_unit(dtype, layout) > kWidestTile);
}

inline ColumnPlan column_plan(DType dtype, const CapLayout& layout, int64_t multiprocessors) {
  ColumnPlan plan;
  const int64_t group = group_of(dtype), period = layout.caps * layout.inner;
  const int64_t repeat = least_repeat(dtype, layout);
  const bool one_tile = fits_one_tile(dtype, layout) && (repeat > 1 || period < kWidth * group);
  if (one_tile) {
    const int64_t shortest = repeat * period / group;
    plan.repeat = repeat * std::max<int64_t>(1, std::min(up_to(kWidth, shortest), layout.outer / repeat));
  }
  plan.aligned = one_tile || repeat == 1;
  plan.row = plan.repeat * period;
  plan.rows = layout.outer / plan.repeat;
  plan.groups = up_to(plan.row, group);
  if (one_tile) {
    plan.width = static_cast<int>(plan.groups);
    plan.tile_caps = layout.caps;
  } else {
    const int64_t unit = cap_unit(dtype, layout);
    const int64_t few_rows = up_to(kColumnThreads, std::max<int64_t>(1, plan.rows));
    const int64_t wanted =
        std::min<int64_t>({std::max(kWidth, few_rows), kColumnThreads, up_to(plan.groups, unit) * unit});
    plan.width = static_cast<int>(unit * std::max<int64_t>(1, wanted / unit));
    plan.tiles = up_to(plan.groups, plan.width);
    plan.tile_caps = plan.width * group / layout.inner;
  }
  plan.height = static_cast<int>(std::clamp<int64_t>(plan.rows, 1, kColumnThreads / plan.width));

  const int64_t resident = kColumnBlocksPerProcessor * multiprocessors;
  const int64_t wanted = splits_wanted(plan.tiles, resident);
  // Every thread has a batch, and the partial sums stay few.
  const int64_t least = std::max<int64_t>(kLeastRows, int64_t{kInFlightOfTwo} * plan.height);
  plan.per_block = up_to(plan.rows, std::clamp<int64_t>(plan.rows / least, 1, wanted));
  plan.per_block = std::clamp<int64_t>(plan.per_block, 1, INT32_MAX / 2);  // a thread counts its rows in 32 bits
  plan.row_blocks = std::max<int64_t>(1, up_to(plan.rows, plan.per_block));
  plan.blocks = plan.row_blocks > kMaxBlocks / plan.tiles ? kMaxBlocks + 1 : plan.tiles * plan.row_blocks;
  return plan;
}

inline BackwardPlan backward_plan(DType dtype, const CapLayout& layout, int64_t multiprocessors) {
  BackwardPlan plan;
  if (layout.caps == 0) return plan;
  plan.by_rows = layout.outer * layout.inner == 0 || runs_by_rows(dtype, layout);
  int64_t sets = layout.caps;
  if (plan.by_rows) {
    plan.rows = row_plan(dtype, layout, multiprocessors);
    plan.cap_blocks = plan.rows.splits;
    plan.blocks = checked_blocks(plan.rows.blocks);
  } else {
    plan.columns = column_plan(dtype, layout, multiprocessors);
    plan.cap_blocks = plan.columns.row_blocks;
    plan.blocks = checked_blocks(plan.columns.blocks);
    sets = plan.columns.tiles;
  }
  plan.counters = plan.cap_blocks > 1 ? sets : 0;
  plan.partials = plan.cap_blocks > 1 ? plan.cap_blocks * layout.caps : 0;
  return plan;
}

// The penalty inside the forward launch: blocks that sum squares of caps.
constexpr int64_t kSquaresPerBlock = 8192;
constexpr int64_t kMostPenaltyBlocks = 64;
inline int64_t penalty_blocks(int64_t caps) {
  return std::clamp<int64_t>(up_to(caps, kSquaresPerBlock), 1, kMostPenaltyBlocks);
}

}  // namespace dreluop::cuda
