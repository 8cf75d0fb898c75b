#include "cpu/cap_sums.h"

namespace dreluop::cpu {
namespace {

template <class Traits>
class BackwardPass {
  using T = typename Traits::Storage;

 public:
  BackwardPass(const Problem& problem, const Backward& pass)
      : problem_(problem),
        pass_(pass),
        grad_(problem, pass.grad),
        y_(problem, pass.y),
        dx_(problem, pass.dx),
        plan_(plan_for(problem.numel(), problem.layout)),
        caps_(plan_, problem, pass.cap),
        to_caps_(problem, plan_, pass.dcap, in_double()),
        to_biases_(problem, plan_, pass.dbias, in_double()) {}

  void run() {
    parallel_over_tiles(problem_, plan_, [&](int64_t tile) {
      if (plan_.variant == Variant::kRuns)
        run_tile(tile);
      else
        column_tile(tile);
    });
    if (to_caps_.wanted()) write_cap_gradient(to_caps_.totals());
    if (to_biases_.wanted()) write(pass_.dbias, problem_.layout.caps, to_biases_.totals());
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

  bool in_double() const {
    return pass_.cap.dtype == DType::kFloat64 || (pass_.dbias.data && pass_.dbias.dtype == DType::kFloat64);
  }

  // Both gradients of a stretch of at most kBlock elements, each null where not wanted.
  Routed route(const Stretch& s, Buffers* buffers) const {
    T grad_buffer[kBlock];
    const T* g = grad_.read(s.i, s.n, grad_buffer);
    T* to_cap = to_caps_.wanted() ? buffers->to_cap : nullptr;
    T* dx = dx_.present() ? dx_.target(s.i, s.n, buffers->dx) : to_biases_.wanted() ? buffers->dx : nullptr;
    if (pass_.mask != nullptr) {
      uint8_t regions[kBlock];
      loops_.unpack(pass_.mask, s.i, s.n, regions);
      loops_.route_regions(g, regions, dx, to_cap, s.n);
    } else {
      T y_buffer[kBlock];
      loops_.route(g, y_.read(s.i, s.n, y_buffer), caps_.for_regions(s, pass_.zeroed), dx, to_cap, s.n);
    }
    if (dx_.present()) dx_.write(s.i, s.n, dx, buffers->dx);
    return {to_cap, dx};
  }

  void run_tile(int64_t index) {
    const Tile tile = tile_at(plan_, index);
    const int64_t cap = tile.first_row % problem_.layout.caps;
    Lanes cap_lanes, bias_lanes;
    Buffers buffers;
    for (int64_t c = tile.first_column; c < tile.last_column; c += kBlock) {
      const int64_t n = std::min(kBlock, tile.last_column - c);
      const Routed routed = route({tile.first_row * plan_.row + c, n, cap, c}, &buffers);
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
        const Routed routed = route({first + j * plan_.row, n, 0, tile.first_column}, &buffers[j]);
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

  void write_cap_gradient(std::vector<double> sums) const {
    if (problem_.shared_cap) sums.assign(1, sum_of(sums));
    if (pass_.grad_penalty.data != nullptr) {
      const double scale = 2 * pass_.balancer * load(pass_.grad_penalty);
      for_each_value(pass_.cap.dtype, TensorView(problem_, pass_.cap), problem_.distinct_caps(),
                     [&](int64_t c, double m) { sums[c] += scale * m; });
    }
    write(pass_.dcap, problem_.distinct_caps(), sums);
  }

  void write(const PerCap& to, int64_t n, const std::vector<double>& sums) const {
    write_values(to.dtype, TensorView(problem_, to), n, [&](int64_t c) { return sums[c]; });
  }

  const Problem& problem_;
  const Backward& pass_;
  const TensorView grad_, y_, dx_;
  const Plan plan_;
  const CapValues<Traits> caps_;
  CapSums<Traits> to_caps_, to_biases_;
  const Primitives<Traits>& loops_ = primitives<Traits>();
};

}  // namespace

void backward(const Problem& problem, const Backward& pass) {
  if (pass.dx.data == nullptr && pass.dcap.data == nullptr && pass.dbias.data == nullptr) return;
  with_dtype_traits(problem.dtype, [&](auto traits) { BackwardPass<decltype(traits)>(problem, pass).run(); });
}

}  // namespace dreluop::cpu
