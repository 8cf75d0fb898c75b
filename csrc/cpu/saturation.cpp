#include "cpu/traverse.h"

namespace dreluop::cpu {
namespace {

// Threads meet in these counters. Whole numbers: the order of the additions does not show.
void add_atomically(int64_t* counter, int64_t n) {
  if (n != 0) __atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

void mark_has_gradient(const uint8_t* regions, int64_t begin, int64_t n, int64_t numel, const SampleLayout& sample,
                       uint8_t* has_gradient) {
  if (sample.samples == numel) {
    for (int64_t j = 0; j < n; ++j) has_gradient[begin + j] = regions[j] == kInside;
    return;
  }
  for (int64_t i = 0; i < n;) {
    const int64_t index = begin + i;
    const int64_t length = std::min(n - i, sample.inner - index % sample.inner);
    bool any = false;
    for (int64_t j = i; j < i + length; ++j) any |= regions[j] == kInside;
    if (any) __atomic_store_n(&has_gradient[index / sample.inner % sample.samples], uint8_t{1}, __ATOMIC_RELAXED);
    i += length;
  }
}

template <class Traits>
void saturation_as(const Problem& problem, const Operand& x, const SampleLayout& sample, int64_t* inside,
                   int64_t* capped, uint8_t* has_gradient) {
  using T = typename Traits::Storage;
  const Primitives<Traits>& loops = primitives<Traits>();
  const CapLayout& layout = problem.layout;
  const Plan plan = plan_for(problem.numel, layout);
  const CapValues<T> caps(plan, layout, static_cast<const T*>(problem.caps));

  problem.parallel_for(
      plan.tiles(), std::max<int64_t>(1, kTask / (plan.tile_rows * plan.tile_columns)),
      [&](int64_t first, int64_t last) {
        T x_buffer[kBlock], y[kBlock];
        uint8_t regions[kBlock];
        int32_t column_inside[kBlock], column_capped[kBlock];
        for (int64_t t = first; t < last; ++t) {
          const Tile tile = tile_at(plan, t);
          const int64_t cap = tile.first_row % layout.caps;
          int64_t run_inside = 0, run_capped = 0;
          std::fill_n(column_inside, kBlock, 0);
          std::fill_n(column_capped, kBlock, 0);
          for (int64_t r = tile.first_row; r < tile.last_row; ++r) {
            for (int64_t c = tile.first_column; c < tile.last_column; c += kBlock) {
              const int64_t i = r * plan.row + c;
              const int64_t n = std::min({kBlock, tile.last_column - c, plan.numel - i});
              if (n <= 0) break;
              const T* from = x.read(i, n, x_buffer);
              if (plan.variant == Variant::kRuns) {
                loops.forward_one(from, caps[cap], y, n);
                loops.regions_one(y, caps[cap], regions, n);
                loops.count(regions, n, &run_inside, &run_capped);
              } else {
                loops.forward_each(from, caps.at(c), y, n);
                loops.regions_each(y, caps.at(c), regions, n);
                for (int64_t j = 0; j < n; ++j) {
                  column_inside[j] += regions[j] & 1;
                  column_capped[j] += regions[j] >> 1;
                }
              }
              mark_has_gradient(regions, i, n, problem.numel, sample, has_gradient);
            }
          }
          if (plan.variant == Variant::kRuns) {
            add_atomically(&inside[cap], run_inside);
            add_atomically(&capped[cap], run_capped);
            continue;
          }
          for (int64_t c = tile.first_column; c < tile.last_column; ++c) {
            add_atomically(&inside[c / layout.inner % layout.caps], column_inside[c - tile.first_column]);
            add_atomically(&capped[c / layout.inner % layout.caps], column_capped[c - tile.first_column]);
          }
        }
      });
}

}  // namespace

void saturation(const Problem& problem, const Operand& x, const SampleLayout& sample, int64_t* inside, int64_t* capped,
                uint8_t* has_gradient) {
  if (problem.numel == 0) return;
  with_dtype_traits(problem.dtype, [&](auto traits) {
    saturation_as<decltype(traits)>(problem, x, sample, inside, capped, has_gradient);
  });
}

}  // namespace dreluop::cpu
