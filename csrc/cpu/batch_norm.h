// What both passes of batch normalization need: the numbers of each channel, sums per channel, and the order of tiles.
#pragma once

#include <cmath>
#include <numeric>

#include "cpu/batch_norm_loops.h"
#include "cpu/traverse.h"

namespace dreluop::cpu {

// Tiles below each other, at most: partial sums of columns are memory that no call finds ready.
constexpr int64_t kMostTilesDown = 128;

inline Plan plan_of_batch_norm(int64_t numel, const CapLayout& layout) {
  Plan plan = plan_for(numel, layout);
  if (plan.variant == Variant::kColumns) {
    plan.tile_rows = std::max(plan.tile_rows, ceil_div(plan.rows, kMostTilesDown));
    plan.tiles_down = ceil_div(plan.rows, plan.tile_rows);
  }
  return plan;
}

// A value per channel, and in columns one per column of a row, with what the loops may read beyond.
template <class T>
class PerChannel {
 public:
  PerChannel(const Plan& plan, const CapLayout& layout)
      : layout_(layout),
        shared_(plan.variant == Variant::kRuns),
        size_(shared_ ? layout.caps : plan.row),
        values_(new T[size_ + kLanes]()) {}

  void set(int64_t channel, T value) {
    if (shared_) {
      values_[channel] = value;
      return;
    }
    for (int64_t at = channel * layout_.inner; at < size_; at += layout_.caps * layout_.inner)
      std::fill_n(&values_[at], std::min(layout_.inner, size_ - at), value);
  }

  T of(int64_t channel) const { return values_[shared_ ? channel : channel * layout_.inner]; }
  Values<T> at(const Stretch& s) const { return {&values_[shared_ ? s.cap : s.column], shared_}; }

 private:
  const CapLayout layout_;
  const bool shared_;
  const int64_t size_;
  std::unique_ptr<T[]> values_;
};

inline double sum_of(const Lanes& lanes) { return std::accumulate(lanes.sum, lanes.sum + kLanes, 0.0); }

// Numbers per channel as doubles, as many as the layout counts, though they may all be one; `absent` where not given.
inline std::vector<double> numbers_of(const Problem& problem, const PerCap& given, double absent) {
  std::vector<double> numbers(problem.layout.caps, absent);
  if (given.data == nullptr) return numbers;
  for_each_value(given.dtype, TensorView(problem, given), problem.layout.caps,
                 [&](int64_t c, double value) { numbers[c] = value; });
  return numbers;
}

// How the elements of each channel are normalized; `set` when its mean and variance are known.
template <class Traits>
class Normalization {
  using Real = Wide<Traits>;

 public:
  template <class Pass>
  Normalization(const Problem& problem, const Plan& plan, const Pass& pass)
      : weight_(numbers_of(problem, pass.weight, 1)),
        bias_(numbers_of(problem, pass.bias, 0)),
        cap_(numbers_of(problem, pass.cap, 0)),
        eps_(pass.eps),
        mean_(plan, problem.layout),
        scale_(plan, problem.layout),
        shift_(plan, problem.layout),
        limit_(plan, problem.layout) {}

  // Mean and variance as they are stored, so that backward finds the same bits.
  void set(int64_t c, Real mean, Real var) {
    const double cap = Traits::upcast(Traits::round(cap_[c]));
    mean_.set(c, mean);
    scale_.set(c, static_cast<Real>(scale(c, var)));
    shift_.set(c, static_cast<Real>(std::isnan(cap) ? cap : bias_[c]));
    limit_.set(c, cap > 0 ? static_cast<Real>(cap) : Real(0));
  }

  double inverse_deviation(Real var) const { return 1 / std::sqrt(static_cast<double>(var) + eps_); }
  double scale(int64_t c, Real var) const { return weight_[c] * inverse_deviation(var); }
  bool can_cap(int64_t c) const { return Traits::upcast(Traits::round(cap_[c])) > 0; }

  Normal<Real> at(const Stretch& s) const { return {mean_.at(s), scale_.at(s), shift_.at(s), limit_.at(s)}; }

 private:
  const std::vector<double> weight_, bias_, cap_;
  const double eps_;
  PerChannel<Real> mean_, scale_, shift_, limit_;
};

// kSums sums per channel, from partial sums of tiles: a run's next to each other, those of columns a row each.
template <int kSums>
class ChannelSums {
 public:
  ChannelSums(const Problem& problem, const Plan& plan)
      : problem_(problem), plan_(plan), partials_(new double[kSums * plan.partials()]()) {}

  double* of_run(int64_t tile) { return &partials_[kSums * tile]; }
  double* of_columns(int64_t tiles_row, int64_t column, int sum) {
    return &partials_[(tiles_row * kSums + sum) * plan_.row + column];
  }

  // After all tiles, before totals of columns: adds what lies below one another, in order.
  void add_columns() {
    if (plan_.variant == Variant::kRuns) return;
    problem_.parallel_for(kSums * plan_.row, ceil_div(kTask, std::max<int64_t>(1, plan_.tiles_down)),
                          [&](int64_t first, int64_t last) {
                            for (int64_t down = 1; down < plan_.tiles_down; ++down)
                              for (int64_t i = first; i < last; ++i)
                                partials_[i] += partials_[down * kSums * plan_.row + i];
                          });
  }

  double total(int64_t channel, int sum) const {
    const CapLayout& layout = problem_.layout;
    double total = 0;
    if (plan_.variant == Variant::kRuns) {
      for (int64_t run = channel; run < plan_.rows; run += layout.caps)
        for (int64_t across = 0; across < plan_.tiles_across; ++across)
          total += partials_[kSums * (run * plan_.tiles_across + across) + sum];
      return total;
    }
    for (int64_t at = channel * layout.inner; at < plan_.row; at += layout.caps * layout.inner)
      for (int64_t i = at; i < std::min(at + layout.inner, plan_.row); ++i) total += partials_[sum * plan_.row + i];
    return total;
  }

 private:
  const Problem& problem_;
  const Plan& plan_;
  std::unique_ptr<double[]> partials_;
};

// From so many channels on, each thread takes whole ones.
constexpr int64_t kManyChannels = 32;

// Calls first(tile) for all tiles of a channel, then settle(channel), then second(tile): for runs of many channels one
// channel after another, whose elements are then still in a cache; else all tiles twice, with between() in the middle.
// The second pass goes backward, from what was read last.
template <class First, class Between, class Settle, class Second>
void in_two_passes(const Problem& problem, const Plan& plan, const First& first, const Between& between,
                   const Settle& settle, const Second& second) {
  const int64_t caps = problem.layout.caps, across = plan.tiles_across;
  if (plan.variant == Variant::kRuns && caps >= kManyChannels) {
    const int64_t channel = std::max<int64_t>(1, plan.numel / caps);
    problem.parallel_for(caps, ceil_div(kTask, channel), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        for (int64_t run = c; run < plan.rows; run += caps)
          for (int64_t i = 0; i < across; ++i) first(run * across + i);
        settle(c);
        for (int64_t run = plan.rows - caps + c; run >= 0; run -= caps)
          for (int64_t i = across; i-- > 0;) second(run * across + i);
      }
    });
    return;
  }
  parallel_over_tiles(problem, plan, first);
  between();
  for (int64_t c = 0; c < caps; ++c) settle(c);
  const int64_t grain = std::max<int64_t>(1, kTask / (plan.tile_rows * plan.tile_columns));
  problem.parallel_for(plan.tiles(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t tile = end; tile-- > begin;) second(tile);
  });
}

// Calls f(stretch) for the stretches of a tile, of at most kBlock elements.
template <class F>
void for_stretches_of_tile(const Plan& plan, const CapLayout& layout, int64_t index, const F& f) {
  const Tile tile = tile_at(plan, index);
  const int64_t cap = plan.variant == Variant::kRuns ? tile.first_row % layout.caps : 0;
  for (int64_t r = tile.first_row; r < tile.last_row; ++r)
    for (int64_t c = tile.first_column; c < tile.last_column; c += kBlock) {
      const int64_t i = r * plan.row + c, n = std::min({kBlock, tile.last_column - c, plan.numel - i});
      if (n > 0) f(Stretch{i, n, cap, c});
    }
}

// Columns whose sums are kept in L1 beside what they need, and rows that are added before these meet sums in double.
constexpr int64_t kStrip = 512;
constexpr int kRowsOfFlush = 8;

// add(stretch, parts) adds a row of a strip of columns to kSums arrays, which flush(part, n, sum) adds to those of
// `sums`.
template <class Real, int kSums, class Add, class Flush>
void add_columns_of_tile(const Plan& plan, int64_t index, ChannelSums<kSums>& sums, const Add& add,
                         const Flush& flush) {
  const Tile tile = tile_at(plan, index);
  Real parts[kSums][kStrip + kLanes] = {};
  Real* pointers[kSums];
  for (int s = 0; s < kSums; ++s) pointers[s] = parts[s];
  for (int64_t c = tile.first_column; c < tile.last_column; c += kStrip) {
    const int64_t columns = std::min(kStrip, tile.last_column - c);
    for (int64_t r = tile.first_row; r < tile.last_row; ++r) {
      const int64_t i = r * plan.row + c, n = std::min(columns, plan.numel - i);
      if (n > 0) add(Stretch{i, n, 0, c}, pointers);
      if ((r - tile.first_row) % kRowsOfFlush == kRowsOfFlush - 1 || r == tile.last_row - 1)
        for (int s = 0; s < kSums; ++s) flush(parts[s], columns, sums.of_columns(index / plan.tiles_across, c, s));
    }
  }
}

}  // namespace dreluop::cpu
