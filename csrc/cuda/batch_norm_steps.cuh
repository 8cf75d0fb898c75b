// What each step of batch normalization does with a vector of elements: it loads, and then uses what it has loaded.
#pragma once

#include "cuda/batch_norm.cuh"

namespace dreluop::cuda {

// Not one step with the addition that follows: forward, backward and the reference round t alike.
DRELUOP_DEVICE float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
DRELUOP_DEVICE double rounded_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// Whole vectors, or (kWhole = false) the first n elements of one that may lie anyhow.
template <class TraitsOfKernel>
struct BatchNormStep {
  using Traits = TraitsOfKernel;
  using T = typename Traits::T;
  using Real = typename Traits::Real;
  using SumType = typename Traits::SumType;
  using Vec = typename Traits::Vec;
  using Values = typename Traits::Values;
  using Reals = Pack<Real, Traits::kVec>;
  static constexpr int kVec = Traits::kVec;
  // Vectors of a batch, by the operands that are loaded.
  static constexpr int kVecsOfOne = Traits::kGeneral ? 1 : kInFlight,
                       kVecsOfTwo = Traits::kGeneral ? 1 : kInFlightOfTwo;

  const typename Traits::Parameters& p;

  template <bool kWhole>
  DRELUOP_DEVICE Vec load_from(int k, int64_t i, int n) const {
    if constexpr (kWhole || Traits::kGeneral) {
      return p.operands.template load<Traits>(k, i, n);
    } else {
      Values values{};
#pragma unroll
      for (int e = 0; e < kVec; ++e)
        if (e < n) values.v[e] = p.operands.template at<Traits>(k, i + e);
      return bit_cast<Vec>(values);
    }
  }

  template <bool kWhole>
  DRELUOP_DEVICE void store_to(int k, int64_t i, int n, const Values& values) const {
    if constexpr (kWhole || Traits::kGeneral) {
      p.operands.template store<Traits>(k, i, n, values);
    } else {
#pragma unroll
      for (int e = 0; e < kVec; ++e)
        if (e < n) p.operands.template at<Traits>(k, i + e) = values.v[e];
    }
  }

  DRELUOP_DEVICE static Reals distances(const Vec& x, const Numbers<Traits>& numbers) {
    Reals result = upcasted<Traits>(x);
#pragma unroll
    for (int e = 0; e < kVec; ++e) result.v[e] -= numbers.mean[e];
    return result;
  }

  DRELUOP_DEVICE static Reals normalized(const Reals& distances, const Numbers<Traits>& numbers) {
    Reals t;
#pragma unroll
    for (int e = 0; e < kVec; ++e) t.v[e] = rounded_product(distances.v[e], numbers.scale[e]) + numbers.shift[e];
    return t;
  }

  DRELUOP_DEVICE static Values activation(const Reals& t, const Numbers<Traits>& numbers) {
    Values rounded;
#pragma unroll
    for (int e = 0; e < kVec; ++e) rounded.v[e] = Traits::round(t.v[e]);
    return capped_values<Traits>(rounded, numbers.cap);
  }
};

template <class Traits>
struct Moments : BatchNormStep<Traits> {
  using Base = BatchNormStep<Traits>;
  using typename Base::SumType;
  static constexpr int kVec = Base::kVec, kVecs = Base::kVecsOfOne;
  struct Loaded {
    typename Base::Vec x;
  };

  template <bool kWhole>
  DRELUOP_DEVICE Loaded load(int64_t i, int n) const {
    return {this->template load_from<kWhole>(kX, i, n)};
  }

  // Gives the terms of the sums, per element; 0 from the nth on.
  template <bool kWhole>
  DRELUOP_DEVICE void use(int64_t, int n, const Loaded& loaded, const Numbers<Traits>& numbers,
                          SumType (*terms)[kVec]) const {
    const auto distance = Base::distances(loaded.x, numbers);
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      const SumType d = e < n ? static_cast<SumType>(distance.v[e]) : SumType(0);
      terms[0][e] = d;
      terms[1][e] = d * d;
    }
  }
};

template <class Traits, bool kHasResidual>
struct Activation : BatchNormStep<Traits> {
  using Base = BatchNormStep<Traits>;
  using typename Base::SumType;
  static constexpr int kVec = Base::kVec, kVecs = kHasResidual ? Base::kVecsOfTwo : Base::kVecsOfOne;
  struct Loaded {
    typename Base::Vec x, residual;
  };

  template <bool kWhole>
  DRELUOP_DEVICE Loaded load(int64_t i, int n) const {
    Loaded loaded{};
    loaded.x = this->template load_from<kWhole>(kX, i, n);
    if constexpr (kHasResidual) loaded.residual = this->template load_from<kWhole>(kResidual, i, n);
    return loaded;
  }

  template <bool kWhole>
  DRELUOP_DEVICE void use(int64_t i, int n, const Loaded& loaded, const Numbers<Traits>& numbers,
                          SumType (*)[kVec]) const {
    if (n == 0) return;
    auto t = Base::normalized(Base::distances(loaded.x, numbers), numbers);
    if constexpr (kHasResidual) {
      const auto residual = upcasted<Traits>(loaded.residual);
#pragma unroll
      for (int e = 0; e < kVec; ++e) t.v[e] += residual.v[e];
    }
    const auto y = Base::activation(t, numbers);
    this->template store_to<kWhole>(kY, i, n, y);
    if constexpr (kWhole && !Traits::kGeneral)
      if (this->p.mask != nullptr) write_mask<Traits>(this->p.mask, i, n, packed_regions_of<Traits>(y, numbers.cap));
  }
};

// What both steps of backward begin with.
template <class Traits, bool kHasMask>
struct BackwardStep : BatchNormStep<Traits> {
  using Base = BatchNormStep<Traits>;
  static constexpr int kVec = Base::kVec, kVecs = Base::kVecsOfTwo;
  struct Loaded {
    typename Base::Vec grad, x;
    uint32_t region_bits;
  };

  template <bool kWhole>
  DRELUOP_DEVICE Loaded load(int64_t i, int n) const {
    Loaded loaded{};
    loaded.grad = this->template load_from<kWhole>(kGrad, i, n);
    loaded.x = this->template load_from<kWhole>(kX, i, n);
    if constexpr (kHasMask && kWhole && !Traits::kGeneral) {
      loaded.region_bits = packed_regions_at<Traits>(this->p.mask, i);
    } else if constexpr (kHasMask) {
#pragma unroll
      for (int e = 0; e < kVec; ++e)
        if (e < n) loaded.region_bits |= static_cast<uint32_t>(region_at(i + e)) << (2 * e);
    }
    return loaded;
  }

  DRELUOP_DEVICE uint8_t region_at(int64_t i) const {
    return region_in_byte(this->p.mask[i / kElementsPerByte], static_cast<int>(i % kElementsPerByte));
  }

  // Without a mask, of t computed again.
  DRELUOP_DEVICE static WhereRegions<Traits> regions(const Loaded& loaded, const typename Base::Reals& distances,
                                                     const Numbers<Traits>& numbers) {
    if constexpr (kHasMask) {
      return where_regions<Traits>(loaded.region_bits);
    } else {
      const auto y = Base::activation(Base::normalized(distances, numbers), numbers);
      return where_regions<Traits>(bit_cast<typename Base::Vec>(y), numbers.cap);
    }
  }
};

enum GradientSum : int { kInsideSum, kProjection, kCappedSum };

template <class Traits, bool kHasMask>
struct GradientSums : BackwardStep<Traits, kHasMask> {
  using Base = BackwardStep<Traits, kHasMask>;
  using typename Base::Loaded;
  using typename Base::SumType;
  static constexpr int kVec = Base::kVec;

  template <bool kWhole>
  DRELUOP_DEVICE void use(int64_t, int, const Loaded& loaded, const Numbers<Traits>& numbers,
                          SumType (*terms)[kVec]) const {
    const auto distance = Base::distances(loaded.x, numbers);
    const auto where = Base::regions(loaded, distance, numbers);
    const auto inside = upcasted<Traits>(only<Traits>(where.inside, loaded.grad));
    const auto capped = upcasted<Traits>(only<Traits>(where.capped, loaded.grad));
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      const auto u = static_cast<SumType>(inside.v[e]);
      terms[kInsideSum][e] = u;
      terms[kProjection][e] = u * static_cast<SumType>(distance.v[e]);
      terms[kCappedSum][e] = static_cast<SumType>(capped.v[e]);
    }
  }
};

template <class Traits, bool kHasMask>
struct Gradients : BackwardStep<Traits, kHasMask> {
  using Base = BackwardStep<Traits, kHasMask>;
  using typename Base::Loaded;
  using typename Base::SumType;
  static constexpr int kVec = Base::kVec;

  template <bool kWhole>
  DRELUOP_DEVICE void use(int64_t i, int n, const Loaded& loaded, const Numbers<Traits>& numbers,
                          SumType (*)[kVec]) const {
    if (n == 0) return;
    const auto distance = Base::distances(loaded.x, numbers);
    const auto inside = only<Traits>(Base::regions(loaded, distance, numbers).inside, loaded.grad);
    if (this->p.wants_residual) this->template store_to<kWhole>(kDResidual, i, n, unpack<Traits>(inside));
    if (!this->p.wants_x) return;
    const auto u = upcasted<Traits>(inside);
    typename Base::Values dx;
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      auto sum = u.v[e] * numbers.scale[e];
      // Else an infinite x would reach its gradient.
      if (this->p.trains) sum += distance.v[e] * numbers.slope[e] + numbers.offset[e];
      dx.v[e] = Traits::round(sum);
    }
    this->template store_to<kWhole>(kDx, i, n, dx);
  }
};

// Calls f with what a kernel does: the loads of one without a residual, or a mask, are not held up by a question.
template <class Traits, class F>
DRELUOP_DEVICE void with_step(const typename Traits::Parameters& p, const F& f) {
  if constexpr (Traits::kStep == Step::kMoments) {
    f(Moments<Traits>{{p}});
  } else if constexpr (Traits::kStep == Step::kActivation) {
    if (p.has_residual)
      f(Activation<Traits, true>{{p}});
    else
      f(Activation<Traits, false>{{p}});
  } else if constexpr (Traits::kStep == Step::kGradientSums) {
    if (p.mask != nullptr)
      f(GradientSums<Traits, true>{{{p}}});
    else
      f(GradientSums<Traits, false>{{{p}}});
  } else {
    if (p.mask != nullptr)
      f(Gradients<Traits, true>{{{p}}});
    else
      f(Gradients<Traits, false>{{{p}}});
  }
}

}  // namespace dreluop::cuda
