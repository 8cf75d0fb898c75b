// How a pass over an activation is cut into segments: pure arithmetic, no device calls, the same for any number of
// threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dreluop/layout.h"

namespace dreluop::cpu {

// Elements handled between two looks at the layout; a multiple of the four elements of a mask's byte. Buffers of this
// size stay in L1.
constexpr int64_t kBlock = 1024;
// Runs of one cap shorter than this are traversed as columns with a cap each; up to the longer bound too, where there
// are enough rows to keep the sums per column small beside the elements.
constexpr int64_t kShortestRun = 32;
constexpr int64_t kShortestRunOfFewRows = 256;
constexpr int64_t kFewRows = 16;
// Columns are repeated until a row has this many, so that short rows cost no more than long ones.
constexpr int64_t kShortestRow = 512;
// Elements of one task: enough to outweigh its start, few enough to spread over threads.
constexpr int64_t kTask = 32768;
// Of large tensors, tiles are larger: as many below each other as leave so many partial sums of columns (a megabyte or
// two, which no call finds ready in memory), but enough for many threads.
constexpr int64_t kMostColumnSums = int64_t{1} << 18;
constexpr int64_t kTilesForThreads = 64;

// Elements in traversal order form rows. kRuns: a row shares one cap. kColumns: column c of every row has the cap of
// element c; the last row may be cut off.
enum class Variant : uint8_t { kRuns, kColumns };

struct Plan {
  Variant variant = Variant::kRuns;
  int64_t numel = 0;
  int64_t row = 1;   // elements of a row
  int64_t rows = 0;  // the last one counts, cut off or not
  // A tile is `tile_rows` x `tile_columns` elements (one row for kRuns); each leaves one partial sum per row of a run,
  // or per column.
  int64_t tile_rows = 1;
  int64_t tile_columns = 1;
  int64_t tiles_down = 0;
  int64_t tiles_across = 0;

  int64_t tiles() const { return tiles_down * tiles_across; }
  int64_t partials() const { return variant == Variant::kRuns ? rows * tiles_across : tiles_down * row; }
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline Plan plan_for(int64_t numel, const CapLayout& layout) {
  Plan plan;
  plan.numel = numel;
  if (numel == 0) return plan;
  const int64_t shortest = layout.outer < kFewRows ? kShortestRun : kShortestRunOfFewRows;
  if (layout.caps == 1 || layout.inner >= shortest) {
    plan.variant = Variant::kRuns;
    plan.row = layout.caps == 1 ? numel : layout.inner;
    plan.rows = numel / plan.row;
    plan.tile_columns = std::min(plan.row, kTask / 2);
    plan.tile_rows = 1;
  } else {
    plan.variant = Variant::kColumns;
    const int64_t period = layout.caps * layout.inner;
    plan.row = std::min(numel, period * ceil_div(kShortestRow, period));
    plan.rows = ceil_div(numel, plan.row);
    plan.tile_columns = std::min(plan.row, kBlock);
    const int64_t most_down = std::max(kTilesForThreads, kMostColumnSums / plan.row);
    plan.tile_rows =
        std::min(plan.rows, std::max({int64_t{1}, kTask / plan.tile_columns, ceil_div(plan.rows, most_down)}));
  }
  plan.tiles_down = ceil_div(plan.rows, plan.tile_rows);
  plan.tiles_across = ceil_div(plan.row, plan.tile_columns);
  return plan;
}

struct Tile {
  int64_t first_row, last_row, first_column, last_column;
};

inline Tile tile_at(const Plan& plan, int64_t index) {
  const int64_t down = index / plan.tiles_across;
  const int64_t across = index % plan.tiles_across;
  return {down * plan.tile_rows, std::min(plan.rows, (down + 1) * plan.tile_rows), across * plan.tile_columns,
          std::min(plan.row, (across + 1) * plan.tile_columns)};
}

}  // namespace dreluop::cpu
