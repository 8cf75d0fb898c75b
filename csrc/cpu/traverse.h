// Stepping through elements in stretches that share one row of the plan, with the caps of each stretch at hand.
#pragma once

#include <algorithm>
#include <memory>

#include "cpu/kernels.h"
#include "cpu/primitives.h"

namespace dreluop::cpu {

// One value per cap, laid out so that a stretch finds its values without arithmetic: the caps themselves for kRuns, a
// whole row of them for kColumns.
template <class T>
class CapValues {
 public:
  CapValues(const Plan& plan, const CapLayout& layout, const T* values) : values_(values) {
    if (plan.variant == Variant::kRuns || values == nullptr || (layout.inner == 1 && plan.row <= layout.caps)) return;
    expanded_.reset(new T[plan.row]);
    T* to = expanded_.get();
    T* const end = to + plan.row;
    while (to < end)
      for (int64_t c = 0; c < layout.caps && to < end; ++c)
        for (int64_t i = 0; i < layout.inner && to < end; ++i) *to++ = values[c];
    values_ = expanded_.get();
  }
  const T& operator[](int64_t i) const { return values_[i]; }
  const T* at(int64_t i) const { return values_ + i; }

 private:
  const T* values_;
  std::unique_ptr<T[]> expanded_;
};

// Calls f(begin, n, cap, column) for stretches of [begin, end) that lie in one row and have at most `longest` elements.
// kRuns: the cap's index; kColumns: the first column.
template <class F>
void for_each_stretch(const Plan& plan, const CapLayout& layout, int64_t begin, int64_t end, int64_t longest,
                      const F& f) {
  int64_t row = begin / plan.row;
  int64_t column = begin % plan.row;
  int64_t cap = row % layout.caps;
  for (int64_t i = begin; i < end;) {
    const int64_t n = std::min({end - i, plan.row - column, longest});
    f(i, n, cap, column);
    i += n;
    column += n;
    if (column == plan.row) {
      column = 0;
      if (++cap == layout.caps) cap = 0;
    }
  }
}

constexpr int64_t kUnbounded = int64_t{1} << 62;

// Runs work(begin, end) over [0, numel) in parallel, cut at multiples of kBlock.
template <class F>
void parallel_over_blocks(const Problem& problem, const F& work) {
  problem.parallel_for(ceil_div(problem.numel, kBlock), kTask / kBlock, [&](int64_t first, int64_t last) {
    work(first * kBlock, std::min(problem.numel, last * kBlock));
  });
}

// Regions of elements [begin, begin + n), which share a row, from whatever was saved.
template <class Traits>
void regions_of(const Plan& plan, const CapValues<typename Traits::Storage>& caps, const Saved& saved, int64_t begin,
                int64_t n, int64_t cap, int64_t column, uint8_t* regions) {
  const Primitives<Traits>& loops = primitives<Traits>();
  if (saved.mask != nullptr) {
    loops.unpack(saved.mask, begin, n, regions);
    return;
  }
  typename Traits::Storage buffer[kBlock];
  const auto* y = saved.y->read(begin, n, buffer);
  if (plan.variant == Variant::kRuns)
    loops.regions_one(y, caps[cap], regions, n);
  else
    loops.regions_each(y, caps.at(column), regions, n);
}

}  // namespace dreluop::cpu
