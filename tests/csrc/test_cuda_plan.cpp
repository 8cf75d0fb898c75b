// The CUDA launch plan over thousands of shapes: every element in exactly one block's share, grids that CUDA accepts,
// partial sums few beside the elements.
#include <cstdio>
#include <random>

#include "check.h"
#include "dreluop/cuda_backward_plan.h"
#include "dreluop/fast_divmod.h"

using namespace dreluop;
using namespace dreluop::cuda;

namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16};

std::string describe(const CapLayout& l) {
  return std::to_string(l.outer) + " x " + std::to_string(l.caps) + " x " + std::to_string(l.inner);
}

void check_flat(DType dtype, int64_t numel, int64_t head, int in_flight, int64_t multiprocessors) {
  const FlatPlan plan = flat_plan(dtype, numel, head, in_flight, multiprocessors);
  const int64_t rest = numel - plan.head - plan.vecs * vec_of(dtype);
  CHECK(plan.head <= head && rest >= 0 && rest < vec_of(dtype));
  CHECK(plan.blocks <= kMaxBlocks && (numel == 0) == (plan.blocks == 0));
  CHECK(plan.per_thread >= 1 && plan.per_thread <= in_flight);
  if (multiprocessors == 0 || plan.blocks > 3 * in_flight * multiprocessors) CHECK(plan.per_thread == in_flight);
  const int64_t share = int64_t{kFlatThreads} * plan.per_thread;
  // A last block may have nothing but the rest.
  const int64_t all = plan.vecs + (rest > 0 ? 1 : 0);
  CHECK(plan.blocks * share >= all && (plan.blocks <= 1 || (plan.blocks - 1) * share < all));
}

void check_rows(DType dtype, const CapLayout& layout, const RowPlan& plan, int64_t head, const std::string& which) {
  CHECK(plan.blocks == layout.caps * plan.splits && plan.blocks <= kMaxBlocks && plan.splits >= 1, which);
  if (plan.packed) {
    const int64_t vec = vec_of(dtype), total = layout.outer * layout.inner;
    if (layout.caps == 1)
      CHECK(plan.vecs * vec <= std::max<int64_t>(0, total - head) && total - plan.vecs * vec < 2 * vec, which);
    else
      CHECK(plan.vecs * vec == total && (total == 0 || plan.run_vecs * vec == layout.inner), which);
    CHECK(plan.splits == 1 || plan.vecs > (plan.splits - 1) * kRowThreads * kInFlightOfTwo, which);
    return;
  }
  CHECK(plan.segments == layout.outer * plan.segments_per_run, which);
  CHECK(plan.segments_per_run * plan.segment_size >= layout.inner &&
            (plan.segments_per_run == 0 || (plan.segments_per_run - 1) * plan.segment_size < layout.inner),
        which);
  CHECK(plan.splits == 1 || plan.segments > (plan.splits - 1) * kRowWarps, which);
}

void check_columns(DType dtype, const CapLayout& layout, const ColumnPlan& plan, const std::string& which) {
  const int64_t vec = vec_of(dtype), period = layout.caps * layout.inner;
  CHECK(plan.width >= 1 && plan.height >= 1 && plan.width * plan.height <= kColumnThreads, which);
  CHECK(plan.row == plan.repeat * period, which);
  CHECK(plan.aligned == (plan.row % vec == 0), which);
  // Whole rows, then less than one row that a single block takes.
  CHECK(plan.rows * plan.row <= layout.outer * period && layout.outer * period < (plan.rows + 1) * plan.row, which);
  if (plan.rows * plan.row < layout.outer * period) CHECK(plan.tiles == 1, which);
  CHECK(plan.tiles * plan.width >= plan.vecs && (plan.tiles - 1) * plan.width < plan.vecs, which);
  CHECK(plan.vecs * vec >= plan.row && (plan.vecs - 1) * vec < plan.row, which);
  // A tile holds whole caps, and each cap lies in one tile.
  if (plan.tiles > 1) {
    CHECK(plan.repeat == 1 && plan.tile_caps * layout.inner == plan.width * vec, which);
  }
  CHECK(plan.tiles * plan.tile_caps >= layout.caps && (plan.tiles - 1) * plan.tile_caps < layout.caps, which);
  CHECK(plan.row_blocks == 1 || plan.rows > (plan.row_blocks - 1) * plan.height * kInFlightOfTwo, which);
  CHECK(plan.blocks == plan.tiles * plan.row_blocks && plan.blocks <= kMaxBlocks, which);
  CHECK(16 + int64_t{plan.width} * plan.height * vec * (dtype == DType::kFloat64 ? 16 : 16) <= 49152, which);
}

void check_backward(DType dtype, const CapLayout& layout, int64_t multiprocessors) {
  const std::string which = describe(layout) + " on " + std::to_string(multiprocessors);
  BackwardPlan plan = backward_plan(dtype, layout, multiprocessors);
  const int64_t numel = layout.outer * layout.caps * layout.inner;
  if (plan.by_rows) {
    check_rows(dtype, layout, plan.rows, 0, which);
    for (const int64_t head : {0, 3}) {
      if (layout.caps > 1 && (head > 0 || layout.inner % vec_of(dtype) > 0)) continue;
      plan = backward_plan(dtype, layout, multiprocessors, true, head);
      check_rows(dtype, layout, plan.rows, head, which);
    }
  } else {
    check_columns(dtype, layout, plan.columns, which);
  }
  CHECK(plan.counters == (plan.cap_blocks > 1 ? plan.by_rows ? layout.caps : plan.columns.tiles : 0), which);
  CHECK(plan.partials == (plan.cap_blocks > 1 ? plan.cap_blocks * layout.caps : 0), which);
  CHECK(plan.partials <= numel / 16 + 4096, which + ": " + std::to_string(plan.partials));
  if (layout.outer <= 4 && !plan.by_rows) CHECK(plan.partials == 0, which);
}

void check_divmod(uint64_t divisor, uint64_t n) {
  const FastDivmod by = FastDivmod::of(static_cast<int64_t>(divisor));
  CHECK(by.quotient(n) == n / divisor, std::to_string(n) + " / " + std::to_string(divisor));
  CHECK(by.remainder(n, n / divisor) == n % divisor);
  if ((n | divisor) >> 31 == 0)
    CHECK(by.short_quotient(static_cast<uint32_t>(n)) == n / divisor,
          std::to_string(n) + " / " + std::to_string(divisor));
}

}  // namespace

int main() {
  std::mt19937_64 random(3);
  const uint64_t top = (uint64_t{1} << 63) - 1;
  for (int bits = 0; bits < 63; ++bits)
    for (int k = 0; k < 200; ++k) {
      const uint64_t divisor = std::max<uint64_t>(1, ((uint64_t{1} << bits) + random() % 5 - 2) & top);
      for (const uint64_t n : {uint64_t{0}, divisor - 1, divisor, top, top - top % divisor, random() >> 1,
                               random() >> 33, (top >> 32) - (top >> 32) % divisor, top >> 32})
        check_divmod(divisor, n);
      check_divmod(std::max<uint64_t>(1, random() >> (1 + random() % 62)), random() >> 1);
    }

  int plans = 0;
  const int64_t numels[] = {0, 1, 3, 4, 5, 8, 1023, 1024, 4096, 4097, (int64_t{1} << 31) + 5, int64_t{1} << 40};
  for (const DType dtype : kDTypes)
    for (const int64_t numel : numels)
      for (const int64_t head : {0, 1, 3})
        for (const int in_flight : {2, 4})
          for (const int64_t multiprocessors : {0, 1, 132})
            check_flat(dtype, numel, head, in_flight, multiprocessors), ++plans;

  std::vector<int64_t> sizes{1, 2, 3, 4, 5, 7, 8, 10, 16, 31, 49, 64, 100, 196, 289, 320, 784, 1000, 1001, 2048, 3136};
  const auto one_of = [&](const std::vector<int64_t>& from) { return from[random() % from.size()]; };
  for (const DType dtype : kDTypes)
    for (const int64_t multiprocessors : {1, 2, 108, 132}) {
      for (const int64_t outer : {0, 1, 2, 4, 32, 100, 1000})
        for (const int64_t caps : sizes)
          for (const int64_t inner : sizes)
            check_backward(dtype, merged({outer, caps, inner}), multiprocessors), ++plans;
      for (int k = 0; k < 2000; ++k) {
        const int64_t odd = static_cast<int64_t>(random() % 5000) + 1;
        check_backward(dtype, merged({one_of(sizes), odd, one_of(sizes)}), multiprocessors);
        check_backward(dtype, merged({odd, one_of(sizes), one_of(sizes)}), multiprocessors);
        check_backward(dtype, merged({one_of(sizes), one_of(sizes), odd}), multiprocessors);
        plans += 3;
      }
      check_backward(dtype, merged({1, 1, int64_t{1} << 33}), multiprocessors);
      check_backward(dtype, merged({1 << 20, 1 << 13, 1}), multiprocessors);
      check_backward(dtype, merged({2, int64_t{1} << 32, 1}), multiprocessors);
    }
  CHECK_THROWS(backward_plan(DType::kFloat32, {1, int64_t{1} << 31, 2000003}, 132), "too many elements");
  CHECK_THROWS(flat_plan(DType::kFloat32, int64_t{1} << 62, 0, 2), "too many elements");
  for (const int64_t caps : {0, 1, 8192, 8193, 1 << 30})
    CHECK(penalty_blocks(caps) >= 1 && penalty_blocks(caps) <= kMostPenaltyBlocks);
  std::printf("cuda_plan: ok, %d plans\n", plans);
}
