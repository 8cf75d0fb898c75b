#include "cpu/batch_norm.h"

namespace dreluop::cpu {
namespace {

template <class Traits>
class BatchNormPass {
  using T = typename Traits::Storage;
  using Real = Wide<Traits>;

 public:
  BatchNormPass(const Problem& problem, const BatchNorm& pass)
      : problem_(problem),
        pass_(pass),
        plan_(plan_of_batch_norm(problem.numel(), problem.layout)),
        x_(problem, pass.x),
        y_(problem, pass.y),
        residual_(problem, pass.residual),
        normalization_(problem, plan_, pass),
        caps_(plan_, problem, pass.cap),
        origin_(plan_, problem.layout),
        moments_(problem, plan_),
        mean_(numbers_of(problem, pass.trains ? PerCap() : pass.mean, 0)),
        var_(numbers_of(problem, pass.trains ? PerCap() : pass.var, 0)) {}

  void run() {
    if (pass_.trains) set_origins();
    in_two_passes(
        problem_, plan_,
        [&](int64_t tile) {
          if (pass_.trains) add_moments(tile);
        },
        [&] { moments_.add_columns(); }, [&](int64_t c) { finish(c); }, [&](int64_t tile) { activate(tile); });
    if (!pass_.trains) return;
    write(pass_.mean, mean_);
    write(pass_.var, var_);
  }

 private:
  // Sums are of x minus an origin near the mean: no digits are lost where the mean is large, and none at all where x is
  // constant. The median of three elements is no outlier, which would cost the digits of all others.
  void set_origins() {
    const CapLayout& layout = problem_.layout;
    const int64_t n = layout.outer * layout.inner;
    for (int64_t c = 0; c < layout.caps; ++c) {
      const double a = element(c, 0), b = element(c, n / 2), d = element(c, n - 1);
      const double median = std::max(std::min(a, b), std::min(std::max(a, b), d));
      origin_.set(c, std::isfinite(median) ? static_cast<Real>(median) : Real(0));
    }
  }

  double element(int64_t c, int64_t of_channel) const {
    const CapLayout& layout = problem_.layout;
    T buffer[1];
    const int64_t i = (of_channel / layout.inner * layout.caps + c) * layout.inner + of_channel % layout.inner;
    return Traits::upcast(*x_.read(i, 1, buffer));
  }

  void add_moments(int64_t tile) {
    T buffer[kBlock];
    if (plan_.variant == Variant::kColumns) {
      add_columns_of_tile<Real, 2>(
          plan_, tile, moments_,
          [&](const Stretch& s, Real* const* sums) {
            loops_.add_column_moments(x_.read(s.i, s.n, buffer), origin_.at(s).first, s.n, sums[0], sums[1]);
          },
          loops_.flush);
      return;
    }
    Lanes first, second;
    for_stretches_of_tile(plan_, problem_.layout, tile, [&](const Stretch& s) {
      loops_.add_moments(x_.read(s.i, s.n, buffer), *origin_.at(s).first, s.n, &first, &second);
    });
    double* sums = moments_.of_run(tile);
    sums[0] = sum_of(first);
    sums[1] = sum_of(second);
  }

  void finish(int64_t c) {
    if (pass_.trains) {
      const double n = static_cast<double>(problem_.layout.outer) * problem_.layout.inner;
      const double mean = moments_.total(c, 0) / n, square = moments_.total(c, 1) / n;
      const double var = square - mean * mean;
      mean_[c] = static_cast<double>(origin_.of(c)) + mean;
      // A NaN stays.
      var_[c] = var < 0 ? 0 : var;
    }
    normalization_.set(c, static_cast<Real>(mean_[c]), static_cast<Real>(var_[c]));
  }

  void activate(int64_t tile) const {
    T x_buffer[kBlock], y_buffer[kBlock], residual_buffer[kBlock];
    for_stretches_of_tile(plan_, problem_.layout, tile, [&](const Stretch& s) {
      T* to = y_.target(s.i, s.n, y_buffer);
      const T* residual = residual_.present() ? residual_.read(s.i, s.n, residual_buffer) : nullptr;
      loops_.activate(x_.read(s.i, s.n, x_buffer), residual, normalization_.at(s), caps_.at(s), to, s.n);
      y_.write(s.i, s.n, to, y_buffer);
    });
  }

  void write(const PerCap& to, const std::vector<double>& numbers) const {
    write_values(to.dtype, TensorView(problem_, to), problem_.layout.caps, [&](int64_t c) { return numbers[c]; });
  }

  const Problem& problem_;
  const BatchNorm& pass_;
  const Plan plan_;
  const TensorView x_, y_, residual_;
  Normalization<Traits> normalization_;
  const CapValues<Traits> caps_;
  PerChannel<Real> origin_;
  ChannelSums<2> moments_;
  std::vector<double> mean_, var_;
  const BatchNormLoops<Traits>& loops_ = batch_norm_loops<Traits>();
};

// The packed mask of y, whose bytes hold elements of neighboring tiles.
template <class Traits>
void pack_regions(const Problem& problem, const BatchNorm& pass) {
  using T = typename Traits::Storage;
  const Primitives<Traits>& loops = primitives<Traits>();
  const Plan plan = plan_for(problem.numel(), problem.layout);
  const CapValues<Traits> caps(plan, problem, pass.cap);
  const TensorView y(problem, pass.y);
  parallel_over_blocks(problem, [&](int64_t begin, int64_t end) {
    T buffer[kBlock];
    uint8_t regions[kBlock];
    for (int64_t block = begin; block < end; block += kBlock) {
      const int64_t block_end = std::min(end, block + kBlock);
      for_each_stretch(plan, problem.layout, block, block_end, kBlock, [&](const Stretch& s) {
        loops.regions(y.read(s.i, s.n, buffer), caps.at(s), regions + s.i % kBlock, s.n);
      });
      loops.pack(regions, block_end - block, pass.mask + block / kElementsPerByte);
    }
  });
}

template <class Traits>
class BatchNormBackwardPass {
  using T = typename Traits::Storage;
  using Real = Wide<Traits>;
  static constexpr bool kIsNative = std::is_same_v<T, Real>;

 public:
  BatchNormBackwardPass(const Problem& problem, const BatchNormBackward& pass)
      : problem_(problem),
        pass_(pass),
        plan_(plan_of_batch_norm(problem.numel(), problem.layout)),
        grad_(problem, pass.grad),
        x_(problem, pass.x),
        dx_(problem, pass.dx),
        dresidual_(problem, pass.dresidual),
        normalization_(problem, plan_, pass),
        caps_(plan_, problem, pass.cap),
        slope_(plan_, problem.layout),
        offset_(plan_, problem.layout),
        sums_(problem, plan_),
        mean_(numbers_of(problem, pass.mean, 0)),
        var_(numbers_of(problem, pass.var, 0)),
        dweight_(problem.layout.caps),
        dbias_(problem.layout.caps),
        dcap_(problem.layout.caps) {
    for (int64_t c = 0; c < problem.layout.caps; ++c)
      normalization_.set(c, static_cast<Real>(mean_[c]), static_cast<Real>(var_[c]));
  }

  void run() {
    const bool sums = pass_.trains || pass_.dweight.data || pass_.dbias.data || pass_.dcap.data;
    const bool writes = dx_.present() || dresidual_.present();
    in_two_passes(
        problem_, plan_,
        [&](int64_t tile) {
          if (sums) add_gradients(tile);
        },
        [&] { sums_.add_columns(); }, [&](int64_t c) { finish(c); },
        [&](int64_t tile) {
          if (writes) write_gradients(tile);
        });
    write(pass_.dweight, dweight_);
    write(pass_.dbias, dbias_);
    if (problem_.shared_cap) dcap_.assign(1, std::accumulate(dcap_.begin(), dcap_.end(), 0.0));
    write(pass_.dcap, dcap_);
  }

 private:
  // The operands of a stretch, where regions are not found from x in the loops.
  struct Read {
    const T *grad, *x;
    const uint8_t* regions;
  };
  struct Buffers {
    T grad[kBlock], x[kBlock], y[kBlock];
    uint8_t regions[kBlock];
  };

  Read read(const Stretch& s, Buffers* buffers) const {
    const T* x = x_.read(s.i, s.n, buffers->x);
    const T* grad = grad_.read(s.i, s.n, buffers->grad);
    if (pass_.mask != nullptr) {
      activation_loops_.unpack(pass_.mask, s.i, s.n, buffers->regions);
    } else if constexpr (kIsNative) {
      return {grad, x, nullptr};
    } else {
      loops_.activate(x, nullptr, normalization_.at(s), caps_.at(s), buffers->y, s.n);
      activation_loops_.regions(buffers->y, caps_.at(s), buffers->regions, s.n);
    }
    return {grad, x, buffers->regions};
  }

  void add_gradients(int64_t tile) {
    Buffers buffers;
    if (plan_.variant == Variant::kColumns) {
      add_columns_of_tile<Real, kGradientSums>(
          plan_, tile, sums_,
          [&](const Stretch& s, Real* const* sums) {
            const Read from = read(s, &buffers);
            loops_.add_column_gradients(from.grad, from.x, from.regions, normalization_.at(s), s.n, sums);
          },
          loops_.flush);
      return;
    }
    Lanes lanes[kGradientSums];
    for_stretches_of_tile(plan_, problem_.layout, tile, [&](const Stretch& s) {
      const Read from = read(s, &buffers);
      loops_.add_gradients(from.grad, from.x, from.regions, normalization_.at(s), s.n, lanes);
    });
    for (int s = 0; s < kGradientSums; ++s) sums_.of_run(tile)[s] = sum_of(lanes[s]);
  }

  // In training, the mean of what reaches x, and its projection on x, are taken out.
  void finish(int64_t c) {
    const Real var = static_cast<Real>(var_[c]);
    const double inverse = normalization_.inverse_deviation(var), scale = normalization_.scale(c, var);
    const double n = static_cast<double>(problem_.layout.outer) * problem_.layout.inner;
    const double inside = sums_.total(c, 0), projected = sums_.total(c, 1);
    dbias_[c] = inside;
    dweight_[c] = projected * inverse;
    dcap_[c] = normalization_.can_cap(c) ? sums_.total(c, 2) : 0;
    slope_.set(c, static_cast<Real>(-scale * inverse * inverse * projected / n));
    offset_.set(c, static_cast<Real>(-scale * inside / n));
  }

  void write_gradients(int64_t tile) const {
    Buffers buffers;
    T dx_buffer[kBlock], dresidual_buffer[kBlock];
    for_stretches_of_tile(plan_, problem_.layout, tile, [&](const Stretch& s) {
      const Read from = read(s, &buffers);
      T* dx = dx_.present() ? dx_.target(s.i, s.n, dx_buffer) : nullptr;
      T* dresidual = dresidual_.present() ? dresidual_.target(s.i, s.n, dresidual_buffer) : nullptr;
      const Slope<Real> slope = pass_.trains ? Slope<Real>{slope_.at(s), offset_.at(s)} : Slope<Real>{};
      loops_.gradient(from.grad, from.x, from.regions, normalization_.at(s), slope, dx, dresidual, s.n);
      if (dx != nullptr) dx_.write(s.i, s.n, dx, dx_buffer);
      if (dresidual != nullptr) dresidual_.write(s.i, s.n, dresidual, dresidual_buffer);
    });
  }

  void write(const PerCap& to, const std::vector<double>& numbers) const {
    if (to.data == nullptr) return;
    write_values(to.dtype, TensorView(problem_, to), static_cast<int64_t>(numbers.size()),
                 [&](int64_t c) { return numbers[c]; });
  }

  const Problem& problem_;
  const BatchNormBackward& pass_;
  const Plan plan_;
  const TensorView grad_, x_, dx_, dresidual_;
  Normalization<Traits> normalization_;
  const CapValues<Traits> caps_;
  PerChannel<Real> slope_, offset_;
  ChannelSums<kGradientSums> sums_;
  const std::vector<double> mean_, var_;
  std::vector<double> dweight_, dbias_, dcap_;
  const BatchNormLoops<Traits>& loops_ = batch_norm_loops<Traits>();
  const Primitives<Traits>& activation_loops_ = primitives<Traits>();
};

}  // namespace

void batch_norm(const Problem& problem, const BatchNorm& pass) {
  if (problem.numel() == 0) return;
  with_dtype_traits(problem.dtype, [&](auto traits) {
    BatchNormPass<decltype(traits)>(problem, pass).run();
    if (pass.mask != nullptr) pack_regions<decltype(traits)>(problem, pass);
  });
}

void batch_norm_backward(const Problem& problem, const BatchNormBackward& pass) {
  if (problem.numel() == 0) return;
  with_dtype_traits(problem.dtype, [&](auto traits) { BatchNormBackwardPass<decltype(traits)>(problem, pass).run(); });
}

}  // namespace dreluop::cpu
