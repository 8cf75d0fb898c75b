// Stepping through elements in stretches that share one row of the plan.
#pragma once

#include <algorithm>

#include "cpu/values.h"

namespace dreluop::cpu {

// Calls f(stretch) for stretches of [begin, end) that lie in one row and have at most `longest` elements.
template <class F>
void for_each_stretch(const Plan& plan, const CapLayout& layout, int64_t begin, int64_t end, int64_t longest,
                      const F& f) {
  const int64_t row = begin / plan.row;
  Stretch s{begin, 0, row % layout.caps, begin % plan.row};
  while (s.i < end) {
    s.n = std::min({end - s.i, plan.row - s.column, longest});
    f(s);
    s.i += s.n;
    s.column += s.n;
    if (s.column == plan.row) {
      s.column = 0;
      if (++s.cap == layout.caps) s.cap = 0;
    }
  }
}

constexpr int64_t kUnbounded = int64_t{1} << 62;

// Runs work(begin, end) over [0, numel) in parallel, cut at multiples of kBlock.
template <class F>
void parallel_over_blocks(const Problem& problem, const F& work) {
  const int64_t numel = problem.numel();
  problem.parallel_for(ceil_div(numel, kBlock), kTask / kBlock,
                       [&](int64_t first, int64_t last) { work(first * kBlock, std::min(numel, last * kBlock)); });
}

// The same over the tiles of a plan: work(index) for each.
template <class F>
void parallel_over_tiles(const Problem& problem, const Plan& plan, const F& work) {
  const int64_t grain = std::max<int64_t>(1, kTask / (plan.tile_rows * plan.tile_columns));
  problem.parallel_for(plan.tiles(), grain, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) work(tile);
  });
}

}  // namespace dreluop::cpu
