// How a pass that sums per cap is cut into CUDA blocks: by rows or by columns (csrc/README.md draws both).
#pragma once

#include <numeric>

#include "dreluop/cuda_plan.h"

namespace dreluop::cuda {

// Long runs of one cap. Block b has cap b % caps, as its split b / caps. The splits of a cap take turns, so that what
// the device reads at a time lies together: packed, where runs are whole aligned vectors, by batches of kRowThreads
// threads; else by batches of kRowWarps segments, each a stretch of one run for one warp.
constexpr int kRowThreads = 256;
constexpr int kRowWarps = kRowThreads / kWarp;
struct RowPlan {
  bool packed = false;
  int64_t run_vecs = 1;          // packed: of a run; one cap is one run, whose head and rest the first split takes
  int64_t vecs = 0;              // packed: of a cap
  int64_t segment_size = 1;      // elements of a segment
  int64_t segments_per_run = 1;  // of a run
  int64_t segments = 0;          // of a cap
  int64_t splits = 1;
  int64_t blocks = 0;
};

// Elements in traversal order as rows of `row` = repeat * caps * inner elements. A block takes `width` vectors of
// columns (whole caps), of which every thread has one, and the rows kInFlightOfTwo * height at a time, by turns with
// the other blocks of its tile. Block b has tile b % tiles.
constexpr int kColumnThreads = 256;
struct ColumnPlan {
  bool aligned = true;  // rows are whole vectors; else the last vector of a row is cut off
  int64_t repeat = 1;
  int64_t row = 1;
  int64_t rows = 0;  // whole ones
  int64_t vecs = 1;  // of a row
  int width = 1;
  int height = 1;
  int64_t tiles = 1;
  int64_t tile_caps = 1;  // caps of a tile, the last one may have fewer
  int64_t row_blocks = 1;
  int64_t blocks = 0;
};

struct BackwardPlan {
  bool by_rows = false;
  RowPlan rows;
  ColumnPlan columns;
  int64_t cap_blocks = 1;  // blocks that share a cap: as many partial sums per cap, none if it is one
  int64_t counters = 0;    // one per tile of caps finished together
  int64_t partials = 0;    // per kind of sum
  int64_t blocks = 0;
};

// Blocks that a multiprocessor can hold at once, by the registers that kernels may use.
constexpr int64_t kRowBlocksPerProcessor = 4;
constexpr int64_t kColumnBlocksPerProcessor = 3;
// Blocks for each multiprocessor that share caps. Two keep enough loads in flight; more read in more places at a time,
// and leave more partial sums: slower on an H100 at 64 MB.
constexpr int64_t kBlocksWanted = 2;
constexpr int64_t kMostRounds = 8;
constexpr int64_t kWellFilled = 80;   // per cent of the places of a round, over all rounds
constexpr int64_t kBatchesAlone = 4;  // that one block takes in the time that it takes several to share caps
constexpr int64_t kLeastBatches = 2;  // of a block that shares its caps
constexpr int64_t kLeastRows = 16;    // likewise, on average: keeps the partial sums few
constexpr int64_t kWidth = 16;        // vectors side by side: whole lines of memory

// Blocks for each of `cap_tiles`, so that the last round of blocks on the device is not nearly empty: the fewest that
// fill well, or the best found.
inline int64_t splits_wanted(int64_t cap_tiles, int64_t resident) {
  int64_t best = 1, best_filled = 0;
  for (int64_t rounds = 1; rounds <= kMostRounds && best_filled < kWellFilled; ++rounds) {
    const int64_t splits = std::max<int64_t>(1, rounds * resident / cap_tiles);
    const int64_t filled = 100 * cap_tiles * splits / (up_to(cap_tiles * splits, resident) * resident);
    if (filled > best_filled) best = splits, best_filled = filled;
  }
  return best;
}

inline int64_t splits_of(int64_t batches, int64_t wanted) {
  return batches <= kBatchesAlone ? 1 : std::max<int64_t>(1, std::min(wanted, batches / kLeastBatches));
}

inline RowPlan row_plan(DType dtype, const CapLayout& layout, int64_t multiprocessors, bool packed, int64_t head) {
  RowPlan plan;
  const int64_t vec = vec_of(dtype), wanted = splits_wanted(layout.caps, kBlocksWanted * multiprocessors);
  plan.packed = packed;
  if (packed) {
    const int64_t run = layout.caps == 1 ? std::max<int64_t>(0, layout.outer * layout.inner - head) : layout.inner;
    plan.run_vecs = std::max<int64_t>(1, run / vec);
    plan.vecs = layout.caps == 1 ? run / vec : layout.outer * (run / vec);
    plan.splits = splits_of(up_to(plan.vecs, int64_t{kRowThreads} * kInFlightOfTwo), wanted);
  } else {
    plan.segment_size =
        std::max<int64_t>(1, std::min(layout.inner, int64_t{kWarp} * kInFlightOfTwo * kBatchesAlone * vec));
    plan.segments_per_run = up_to(layout.inner, plan.segment_size);
    plan.segments = layout.outer * plan.segments_per_run;
    plan.splits = std::max<int64_t>(1, std::min(wanted, up_to(plan.segments, kRowWarps)));
  }
  plan.blocks = layout.caps > 0 && plan.splits > kMaxBlocks / layout.caps ? kMaxBlocks + 1 : layout.caps * plan.splits;
  return plan;
}

// Vectors after which the borders of vectors and of caps meet again.
inline int64_t cap_unit(DType dtype, const CapLayout& layout) {
  return layout.inner / std::gcd(layout.inner, int64_t{vec_of(dtype)});
}

// Rows repeated until they are whole vectors.
inline int64_t least_repeat(DType dtype, const CapLayout& layout) {
  const int64_t vec = vec_of(dtype);
  return vec / std::gcd(layout.caps * layout.inner, vec);
}

constexpr int64_t kWidestTile = kColumnThreads;

inline bool fits_one_tile(DType dtype, const CapLayout& layout) {
  return least_repeat(dtype, layout) * layout.caps * layout.inner <= kWidestTile * vec_of(dtype);
}

inline bool goes_by_rows(DType dtype, const CapLayout& layout) {
  return layout.outer * layout.inner == 0 || layout.caps == 1 ||
         (!fits_one_tile(dtype, layout) && cap_unit(dtype, layout) > kWidestTile);
}

inline ColumnPlan column_plan(DType dtype, const CapLayout& layout, int64_t multiprocessors) {
  ColumnPlan plan;
  const int64_t vec = vec_of(dtype), period = layout.caps * layout.inner;
  const int64_t repeat = least_repeat(dtype, layout);
  const bool one_tile = fits_one_tile(dtype, layout) && (repeat > 1 || period < kWidth * vec);
  if (one_tile) {
    const int64_t shortest = repeat * period / vec;
    plan.repeat = repeat * std::max<int64_t>(1, std::min(up_to(kWidth, shortest), layout.outer / repeat));
  }
  plan.aligned = one_tile || repeat == 1;
  plan.row = plan.repeat * period;
  plan.rows = layout.outer / plan.repeat;
  plan.vecs = up_to(plan.row, vec);
  if (one_tile) {
    plan.width = static_cast<int>(plan.vecs);
    plan.tile_caps = layout.caps;
  } else {
    const int64_t unit = cap_unit(dtype, layout);
    const int64_t few_rows = up_to(kColumnThreads, std::max<int64_t>(1, plan.rows));
    const int64_t wanted =
        std::min<int64_t>({std::max(kWidth, few_rows), kColumnThreads, up_to(plan.vecs, unit) * unit});
    plan.width = static_cast<int>(unit * std::max<int64_t>(1, wanted / unit));
    plan.tiles = up_to(plan.vecs, plan.width);
    plan.tile_caps = plan.width * vec / layout.inner;
  }
  plan.height = static_cast<int>(std::clamp<int64_t>(plan.rows, 1, kColumnThreads / plan.width));

  if (plan.rows > INT32_MAX) throw std::invalid_argument("x: too many elements for one CUDA grid");
  const int64_t wanted = std::min(splits_wanted(plan.tiles, kBlocksWanted * multiprocessors), plan.rows / kLeastRows);
  plan.row_blocks = splits_of(up_to(plan.rows, int64_t{kInFlightOfTwo} * plan.height), wanted);
  plan.blocks = plan.row_blocks > kMaxBlocks / plan.tiles ? kMaxBlocks + 1 : plan.tiles * plan.row_blocks;
  return plan;
}

// packed_rows: whether runs, if it goes by rows, are whole aligned vectors, but for the head and the rest of a single
// cap.
inline BackwardPlan backward_plan(DType dtype, const CapLayout& layout, int64_t multiprocessors,
                                  bool packed_rows = false, int64_t head = 0) {
  BackwardPlan plan;
  if (layout.caps == 0) return plan;
  plan.by_rows = goes_by_rows(dtype, layout);
  int64_t cap_tiles = layout.caps;
  if (plan.by_rows) {
    plan.rows = row_plan(dtype, layout, multiprocessors, packed_rows, head);
    plan.cap_blocks = plan.rows.splits;
    plan.blocks = checked_blocks(plan.rows.blocks);
  } else {
    plan.columns = column_plan(dtype, layout, multiprocessors);
    plan.cap_blocks = plan.columns.row_blocks;
    plan.blocks = checked_blocks(plan.columns.blocks);
    cap_tiles = plan.columns.tiles;
  }
  plan.counters = plan.cap_blocks > 1 ? cap_tiles : 0;
  plan.partials = plan.cap_blocks > 1 ? plan.cap_blocks * layout.caps : 0;
  return plan;
}

}  // namespace dreluop::cuda
