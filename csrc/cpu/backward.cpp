#include "cpu/traverse.h"

namespace dreluop::cpu {
namespace {

double total_of(const Lanes& lanes) {
  double sum = 0, error = 0;
  for (int j = 0; j < kLanes; ++j) {
    sum = two_sum(sum, lanes.sum[j], &error);
    error += lanes.error[j];
  }
  return with_error(sum, error);
}

// The sums of one tile per run or column, then of all tiles per cap: one object per gradient that is summed.
template <class Traits>
class CapSums {
  using T = typename Traits::Storage;
  // Sums of doubles keep their errors apart, in memory behind the sums.
  static constexpr bool kExact = sizeof(T) == sizeof(double);

 public:
  CapSums(const Plan& plan, const CapLayout& layout, ParallelFor parallel_for, double* result, bool in_double)
      : plan_(plan), layout_(layout), parallel_for_(parallel_for), result_(result), in_double_(kExact || in_double) {
    if (result != nullptr) partials_.reset(new double[kExact ? 2 * plan.partials() : plan.partials()]);
  }

  bool wanted() const { return result_ != nullptr; }

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

  // Partials of a cap are added in the order of the elements they stand for, whatever thread made them.
  void finish() {
    const int64_t columns = plan_.variant == Variant::kRuns ? layout_.caps * plan_.tiles_across : plan_.row;
    const int64_t per_cap = plan_.variant == Variant::kRuns ? plan_.tiles_across : layout_.inner;
    const int64_t period = layout_.caps * per_cap;
    const int64_t rows = ceil_div(plan_.partials(), columns);
    if (plan_.partials() == layout_.caps) {
      for (int64_t c = 0; c < layout_.caps; ++c)
        result_[c] = kExact ? with_error(partials_[c], *error_of(c)) : partials_[c];
      return;
    }
    const int64_t partials_per_cap = std::max<int64_t>(1, rows * columns / layout_.caps);
    parallel_for_(layout_.caps, std::max<int64_t>(1, kTask / partials_per_cap), [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; c += kCapsAtOnce) {
        const int64_t n = std::min(kCapsAtOnce, last - c);
        double sums[kCapsAtOnce] = {}, errors[kCapsAtOnce] = {};
        for (int64_t row = 0; row < rows; ++row)
          for (int64_t repeat = 0; repeat < columns; repeat += period)
            add_row(row * columns + repeat + c * per_cap, per_cap, n, sums, errors);
        for (int64_t i = 0; i < n; ++i) result_[c + i] = with_error(sums[i], errors[i]);
      }
    });
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

  const Plan& plan_;
  const CapLayout& layout_;
  const ParallelFor parallel_for_;
  double* const result_;
  const bool in_double_;
  std::unique_ptr<double[]> partials_;
  const Primitives<Traits>& loops_ = primitives<Traits>();
};

template <class Traits>
class Backward {
  using T = typename Traits::Storage;

 public:
  Backward(const Problem& problem, const Operand& grad, const Saved& saved, const Operand* dx, double* dcap,
           double* dbias, bool in_double)
      : problem_(problem),
        grad_(grad),
        saved_(saved),
        dx_(dx),
        plan_(plan_for(problem.numel, problem.layout)),
        caps_(plan_, problem.layout, static_cast<const T*>(problem.caps)),
        to_caps_(plan_, problem_.layout, problem.parallel_for, dcap, in_double),
        to_biases_(plan_, problem_.layout, problem.parallel_for, dbias, in_double) {}

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
    if (to_caps_.wanted()) to_caps_.finish();
    if (to_biases_.wanted()) to_biases_.finish();
  }

 private:
  // Where the gradients of a stretch are put.
  struct Routed {
    const T* to_cap;
    const T* dx;
  };
  struct Buffers {
    T to_cap[kBlock], dx[kBlock];
  };

  // Both gradients of elements [i, i + n), n <= kBlock, each null if nobody needs it.
  Routed route(int64_t i, int64_t n, int64_t cap, int64_t column, Buffers* buffers) const {
    T grad_buffer[kBlock];
    const T* g = grad_.read(i, n, grad_buffer);
    T* to_cap = to_caps_.wanted() ? buffers->to_cap : nullptr;
    T* dx = dx_ != nullptr ? dx_->target(i, n, buffers->dx) : to_biases_.wanted() ? buffers->dx : nullptr;
    if (saved_.mask != nullptr) {
      uint8_t regions[kBlock];
      loops_.unpack(saved_.mask, i, n, regions);
      loops_.route_regions(g, regions, dx, to_cap, n);
    } else {
      T y_buffer[kBlock];
      const T* y = saved_.y->read(i, n, y_buffer);
      if (plan_.variant == Variant::kRuns)
        loops_.route_one(g, y, caps_[cap], dx, to_cap, n);
      else
        loops_.route_each(g, y, caps_.at(column), dx, to_cap, n);
    }
    if (dx_ != nullptr) dx_->write(i, n, dx, buffers->dx);
    return {to_cap, dx};
  }

  void run_tile(int64_t index) {
    const Tile tile = tile_at(plan_, index);
    const int64_t cap = tile.first_row % problem_.layout.caps;
    Lanes cap_lanes, bias_lanes;
    Buffers buffers;
    for (int64_t c = tile.first_column; c < tile.last_column; c += kBlock) {
      const int64_t n = std::min(kBlock, tile.last_column - c);
      const Routed routed = route(tile.first_row * plan_.row + c, n, cap, c, &buffers);
      if (to_caps_.wanted()) loops_.add_run(routed.to_cap, n, &cap_lanes);
      if (to_biases_.wanted()) loops_.add_run(routed.dx, n, &bias_lanes);
    }
    if (to_caps_.wanted()) to_caps_.store_run(index, cap_lanes);
    if (to_biases_.wanted()) to_biases_.store_run(index, bias_lanes);
  }

  void column_tile(int64_t index) {
    const Tile tile = tile_at(plan_, index);
    const int64_t at = index / plan_.tiles_across * plan_.row + tile.first_column;
    if (to_caps_.wanted()) to_caps_.start_columns(at, tile.last_column - tile.first_column);
    if (to_biases_.wanted()) to_biases_.start_columns(at, tile.last_column - tile.first_column);
    const int64_t columns = tile.last_column - tile.first_column;
    Buffers buffers[kRowsAtOnce];
    for (int64_t r = tile.first_row; r < tile.last_row; r += kRowsAtOnce) {
      const T *to_cap[kRowsAtOnce], *dx[kRowsAtOnce];
      const int count = static_cast<int>(std::min<int64_t>(kRowsAtOnce, tile.last_row - r));
      const int64_t first = r * plan_.row + tile.first_column;
      // The last row of all may be cut off.
      const int64_t last_n = std::min(columns, plan_.numel - (first + (count - 1) * plan_.row));
      const int whole = last_n == columns ? count : count - 1;
      for (int j = 0; j < count; ++j) {
        const int64_t n = j < whole ? columns : last_n;
        if (n <= 0) continue;
        const Routed routed = route(first + j * plan_.row, n, 0, tile.first_column, &buffers[j]);
        to_cap[j] = routed.to_cap;
        dx[j] = routed.dx;
      }
      const auto add = [&](CapSums<Traits>& sums, const T* const* rows) {
        if (!sums.wanted()) return;
        sums.add_columns(at, rows, whole, columns);
        if (whole < count && last_n > 0) sums.add_columns(at, rows + whole, 1, last_n);
      };
      add(to_caps_, to_cap);
      add(to_biases_, dx);
    }
  }

  const Problem& problem_;
  const Operand& grad_;
  const Saved& saved_;
  const Operand* dx_;
  const Plan plan_;
  const CapValues<T> caps_;
  CapSums<Traits> to_caps_, to_biases_;
  const Primitives<Traits>& loops_ = primitives<Traits>();
};

}  // namespace

void backward(const Problem& problem, const Operand& grad, const Saved& saved, const Operand* dx, double* dcap,
              double* dbias, bool sums_in_double) {
  if (dcap != nullptr) std::fill_n(dcap, problem.layout.caps, 0.0);
  if (dbias != nullptr) std::fill_n(dbias, problem.layout.caps, 0.0);
  if (problem.numel == 0 || (dx == nullptr && dcap == nullptr && dbias == nullptr)) return;
  with_dtype_traits(problem.dtype, [&](auto traits) {
    Backward<decltype(traits)>(problem, grad, saved, dx, dcap, dbias, sums_in_double).run();
  });
}

}  // namespace dreluop::cpu
