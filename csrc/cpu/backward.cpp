#include "cpu/walk.h"

namespace dreluop::cpu {
namespace {

// Sums of one tile per run or column, in memory that holds the errors of double sums behind the sums.
template <class Format>
struct Partials {
  static constexpr bool kExact = sizeof(typename Format::Storage) == sizeof(double);

  explicit Partials(int64_t count) : count(count), sums(new double[kExact ? 2 * count : count]) {}
  double* error_of(int64_t i) const { return kExact ? sums.get() + count + i : nullptr; }

  int64_t count;
  std::unique_ptr<double[]> sums;
};

double total_of(const Lanes& lanes) {
  double sum = 0, error = 0;
  for (int j = 0; j < kLanes; ++j) {
    sum = two_sum(sum, lanes.sum[j], &error);
    error += lanes.error[j];
  }
  return with_error(sum, error);
}

template <class Format>
class Backward {
  using T = typename Format::Storage;

 public:
  Backward(const Problem& problem, const Operand& grad, const Saved& saved, const Operand* dx, double* dcap)
      : problem_(problem),
        grad_(grad),
        saved_(saved),
        dx_(dx),
        dcap_(dcap),
        plan_(plan_for(problem.numel, problem.layout)),
        caps_(plan_, problem.layout, static_cast<const T*>(problem.caps)),
        partials_(dcap != nullptr ? plan_.partials() : 0) {}

  void run() {
    const int64_t tile = plan_.tile_rows * plan_.tile_columns;
    problem_.parallel_for(plan_.tiles(), std::max<int64_t>(1, kTask / tile), [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) {
        if (plan_.variant == Variant::kRuns)
          run_tile(t);
        else
          column_tile(t);
      }
    });
    if (dcap_ != nullptr) finish();
  }

 private:
  // dx of elements [i, i + n), n <= kBlock; their gradients to the cap, if wanted, go to `to_cap`.
  void route(int64_t i, int64_t n, int64_t cap, int64_t column, T* to_cap) const {
    T grad_buffer[kBlock], other_buffer[kBlock];
    const T* g = grad_.read(i, n, grad_buffer);
    T* dx = nullptr;
    if (saved_.code != nullptr) {
      uint8_t regions[kBlock];
      loops_.unpack(saved_.code, i, n, regions);
      if (dx_ != nullptr) dx = dx_->target(i, n, other_buffer);
      loops_.route_regions(g, regions, dx, to_cap, n);
    } else {
      T y_buffer[kBlock];
      const T* y = saved_.y->read(i, n, y_buffer);
      if (dx_ != nullptr) dx = dx_->target(i, n, other_buffer);
      if (plan_.variant == Variant::kRuns)
        loops_.route_one(g, y, caps_[cap], dx, to_cap, n);
      else
        loops_.route_each(g, y, caps_.at(column), dx, to_cap, n);
    }
    if (dx != nullptr) dx_->write(i, n, dx, other_buffer);
  }

  void run_tile(int64_t index) {
    const Tile tile = tile_at(plan_, index);
    const int64_t cap = tile.first_row % problem_.layout.caps;
    T to_cap[kBlock];
    Lanes lanes;
    for (int64_t c = tile.first_column; c < tile.last_column; c += kBlock) {
      const int64_t n = std::min(kBlock, tile.last_column - c);
      route(tile.first_row * plan_.row + c, n, cap, c, dcap_ != nullptr ? to_cap : nullptr);
      if (dcap_ != nullptr) loops_.add_run(to_cap, n, &lanes);
    }
    if (dcap_ == nullptr) return;
    partials_.sums[index] = total_of(lanes);
    if (Partials<Format>::kExact) *partials_.error_of(index) = 0;
  }

  void column_tile(int64_t index) {
    const Tile tile = tile_at(plan_, index);
    double* sums = nullptr;
    double* errors = nullptr;
    if (dcap_ != nullptr) {
      const int64_t at = index / plan_.tiles_across * plan_.row + tile.first_column;
      sums = partials_.sums.get() + at;
      errors = partials_.error_of(at);
      std::fill_n(sums, tile.last_column - tile.first_column, 0.0);
      if (errors != nullptr) std::fill_n(errors, tile.last_column - tile.first_column, 0.0);
    }
    T to_cap[kBlock];
    for (int64_t r = tile.first_row; r < tile.last_row; ++r) {
      const int64_t i = r * plan_.row + tile.first_column;
      const int64_t n = std::min(tile.last_column - tile.first_column, plan_.numel - i);
      if (n <= 0) break;
      route(i, n, 0, tile.first_column, dcap_ != nullptr ? to_cap : nullptr);
      if (dcap_ != nullptr) loops_.add_columns(to_cap, n, sums, errors);
    }
  }

  // Partials of a cap are added in the order of the elements they stand for, whatever thread made them.
  void finish() {
    const CapLayout& layout = problem_.layout;
    const int64_t columns = plan_.variant == Variant::kRuns ? layout.caps * plan_.tiles_across : plan_.row;
    const int64_t per_cap = plan_.variant == Variant::kRuns ? plan_.tiles_across : layout.inner;
    const int64_t period = layout.caps * per_cap;
    const int64_t rows = ceil_div(partials_.count, columns);
    problem_.parallel_for(layout.caps, std::max<int64_t>(1, kTask / std::max<int64_t>(1, rows * columns / layout.caps)),
                          [&](int64_t first, int64_t last) {
                            std::vector<double> sums(last - first, 0.0), errors(last - first, 0.0);
                            for (int64_t row = 0; row < rows; ++row)
                              for (int64_t repeat = 0; repeat < columns; repeat += period)
                                add_row(row * columns + repeat, per_cap, first, last, &sums, &errors);
                            for (int64_t c = first; c < last; ++c)
                              dcap_[c] = with_error(sums[c - first], errors[c - first]);
                          });
  }

  void add_row(int64_t base, int64_t per_cap, int64_t first, int64_t last, std::vector<double>* sums,
               std::vector<double>* errors) const {
    for (int64_t c = first; c < last; ++c) {
      double& sum = (*sums)[c - first];
      double& error = (*errors)[c - first];
      for (int64_t i = base + c * per_cap; i < std::min(base + (c + 1) * per_cap, partials_.count); ++i) {
        sum = two_sum(sum, partials_.sums[i], &error);
        if (Partials<Format>::kExact) error += *partials_.error_of(i);
      }
    }
  }

  const Problem& problem_;
  const Operand& grad_;
  const Saved& saved_;
  const Operand* dx_;
  double* dcap_;
  const Plan plan_;
  const CapValues<T> caps_;
  const Partials<Format> partials_;
  const Primitives<Format>& loops_ = primitives<Format>();
};

}  // namespace

void backward(const Problem& problem, const Operand& grad, const Saved& saved, const Operand* dx, double* dcap) {
  if (dcap != nullptr) std::fill_n(dcap, problem.layout.caps, 0.0);
  if (problem.numel == 0 || (dx == nullptr && dcap == nullptr)) return;
  with_format(problem.dtype, [&](auto format) { Backward<decltype(format)>(problem, grad, saved, dx, dcap).run(); });
}

}  // namespace dreluop::cpu
