// Tiles cover every element exactly once, and partial sums stand for exactly the elements of their cap.
#include <algorithm>
#include <vector>

#include "check.h"
#include "dreluop/plan.h"

using namespace dreluop;
using namespace dreluop::cpu;

namespace {

void check_plan(const CapLayout& layout) {
  const int64_t numel = layout.outer * layout.caps * layout.inner;
  const Plan plan = plan_for(numel, layout);
  const std::string which =
      std::to_string(layout.outer) + " x " + std::to_string(layout.caps) + " x " + std::to_string(layout.inner);
  CHECK(plan.numel == numel, which);
  if (numel == 0) {
    CHECK(plan.tiles() == 0, which);
    return;
  }
  CHECK(plan.rows == ceil_div(numel, plan.row), which);
  CHECK(plan.tile_columns <= kBlock || plan.variant == Variant::kRuns, which);
  const int64_t period = layout.caps * layout.inner;
  // A run has one cap; a column keeps its cap from row to row.
  if (plan.variant == Variant::kRuns)
    CHECK(layout.caps == 1 || plan.row == layout.inner, which);
  else
    CHECK(plan.row % period == 0 || plan.row == numel, which);
  std::vector<uint8_t> seen(numel, 0);
  for (int64_t t = 0; t < plan.tiles(); ++t) {
    const Tile tile = tile_at(plan, t);
    CHECK(tile.first_row < tile.last_row && tile.first_column < tile.last_column, which);
    CHECK(plan.variant == Variant::kColumns || tile.last_row == tile.first_row + 1, which);
    for (int64_t r = tile.first_row; r < tile.last_row; ++r)
      for (int64_t c = tile.first_column; c < tile.last_column && r * plan.row + c < numel; ++c)
        ++seen[r * plan.row + c];
  }
  for (int64_t i = 0; i < numel; ++i) CHECK(seen[i] == 1, which + " element " + std::to_string(i));
  CHECK(plan.partials() == (plan.variant == Variant::kRuns ? plan.tiles() : plan.tiles_down * plan.row), which);
}

}  // namespace

int main() {
  const int64_t outers[] = {0, 1, 2, 3, 7, 31, 64, 257, 1000};
  const int64_t caps[] = {1, 2, 3, 5, 16, 31, 64, 100, 511, 512, 513, 1024, 1025, 3000};
  const int64_t inners[] = {1, 2, 3, 4, 7, 31, 32, 33, 49, 64, 255, 256, 1024, 16383, 16385, 40000};
  int plans = 0;
  for (const int64_t outer : outers)
    for (const int64_t c : caps)
      for (const int64_t inner : inners)
        if (outer * c * inner < 3000000) {
          check_plan({outer, c, inner});
          ++plans;
        }
  // Of a large tensor the sums of columns stay few, and the tiles enough.
  for (const CapLayout& layout : {CapLayout{8192, 4096, 1}, CapLayout{1 << 20, 64, 1}, CapLayout{4096, 100000, 1}}) {
    const Plan plan = plan_for(layout.outer * layout.caps, layout);
    CHECK(plan.partials() <= std::max(kMostColumnSums, kTilesForThreads * plan.row));
    CHECK(plan.tiles() >= kTilesForThreads);
  }
  std::printf("plan: ok, %d plans\n", plans);
}
