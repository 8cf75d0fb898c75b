// Sums over the elements of each cap: of one tile per run or column, then of all tiles.
#pragma once

#include "cpu/traverse.h"

namespace dreluop::cpu {

inline double total_of(const Lanes& lanes) {
  double sum = 0, error = 0;
  for (int j = 0; j < kLanes; ++j) {
    sum = two_sum(sum, lanes.sum[j], &error);
    error += lanes.error[j];
  }
  return with_error(sum, error);
}

inline double sum_of(const std::vector<double>& terms) {
  double sum = 0, error = 0;
  for (const double term : terms) sum = two_sum(sum, term, &error);
  return with_error(sum, error);
}

// One object per gradient that is summed.
template <class Traits>
class CapSums {
  using T = typename Traits::Storage;
  // Sums of doubles keep their errors apart, in memory behind the sums.
  static constexpr bool kExact = sizeof(T) == sizeof(double);

 public:
  CapSums(const Problem& problem, const Plan& plan, const PerCap& gradient, bool in_double)
      : problem_(problem), plan_(plan), gradient_(gradient), in_double_(kExact || in_double) {
    if (wanted()) partials_.reset(new double[kExact ? 2 * plan.partials() : plan.partials()]);
  }

  bool wanted() const { return gradient_.data != nullptr; }

  void store_run(int64_t tile, const Lanes& lanes) {
    partials_[tile] = total_of(lanes);
    if (kExact) *error_of(tile) = 0;
  }

  void start_columns(int64_t at, int64_t n) {
    std::fill_n(&partials_[at], n, 0.0);
    if (kExact) std::fill_n(error_of(at), n, 0.0);
  }

  // `count` rows of n terms each.
  void add_columns(int64_t at, const T* const* rows, int count, int64_t n) {
    if (!in_double_ && count == kRowsAtOnce) {
      loops_.add_rows(rows, n, &partials_[at]);
      return;
    }
    for (int r = 0; r < count; ++r) loops_.add_columns(rows[r], n, &partials_[at], kExact ? error_of(at) : nullptr);
  }

  // One sum per cap of the layout. Partials of a cap are added in the order of the elements they come from, whatever
  // thread made them.
  std::vector<double> totals() const {
    std::vector<double> result(problem_.layout.caps, 0.0);
    if (plan_.numel == 0) return result;
    const CapLayout& layout = problem_.layout;
    const bool runs = plan_.variant == Variant::kRuns;
    const int64_t columns = runs ? layout.caps * plan_.tiles_across : plan_.row;
    const int64_t per_cap = runs ? plan_.tiles_across : layout.inner;
    const int64_t rows = ceil_div(plan_.partials(), columns);
    if (plan_.partials() == layout.caps) {
      for (int64_t c = 0; c < layout.caps; ++c)
        result[c] = kExact ? with_error(partials_[c], *error_of(c)) : partials_[c];
      return result;
    }
    const int64_t partials_per_cap = std::max<int64_t>(1, rows * columns / layout.caps);
    problem_.parallel_for(layout.caps, std::max<int64_t>(1, kTask / partials_per_cap),
                          [&](int64_t first, int64_t last) {
                            for (int64_t c = first; c < last; c += kCapsAtOnce) {
                              const int64_t n = std::min(kCapsAtOnce, last - c);
                              double sums[kCapsAtOnce] = {}, errors[kCapsAtOnce] = {};
                              for (int64_t row = 0; row < rows; ++row)
                                for (int64_t repeat = 0; repeat < columns; repeat += layout.caps * per_cap)
                                  add_row(row * columns + repeat + c * per_cap, per_cap, n, sums, errors);
                              for (int64_t i = 0; i < n; ++i) result[c + i] = with_error(sums[i], errors[i]);
                            }
                          });
    return result;
  }

 private:
  static constexpr int64_t kCapsAtOnce = 256;

  double* error_of(int64_t i) const { return partials_.get() + plan_.partials() + i; }

  void add_row(int64_t base, int64_t per_cap, int64_t caps, double* sums, double* errors) const {
    for (int64_t c = 0; c < caps; ++c) {
      const int64_t end = std::min(base + (c + 1) * per_cap, plan_.partials());
      for (int64_t i = base + c * per_cap; i < end; ++i) {
        sums[c] = two_sum(sums[c], partials_[i], &errors[c]);
        if (kExact) errors[c] += *error_of(i);
      }
    }
  }

  const Problem& problem_;
  const Plan& plan_;
  const PerCap& gradient_;
  const bool in_double_;
  std::unique_ptr<double[]> partials_;
  const Primitives<Traits>& loops_ = primitives<Traits>();
};

}  // namespace dreluop::cpu
