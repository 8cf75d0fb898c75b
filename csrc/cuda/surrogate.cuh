// The gradients of attacks: straight through the cap, or smoothed.
#pragma once

#include "cuda/caps.cuh"
#include "dreluop/surrogate.h"

namespace dreluop::cuda {

struct SurrogateParameters {
  Operands<Access::kGeneral> operands;  // grad, saved, dx
  const uint8_t* mask;
  FlatPlan plan;
  CapMap map;
  CapSource<Access::kGeneral> cap, width;  // data is null in the straight-through form
};

template <class Traits>
struct SurrogatePass {
  using T = typename Traits::Storage;
  using Real = typename Working<Traits>::Real;
  static constexpr int kVec = sizeof(T) == 2 ? 8 : 4;
  using Caps = CapsOfVec<Traits, kVec, Access::kGeneral, CapMode::kEach>;
  enum { kGrad, kSaved, kDx };

  const SurrogateParameters& p;

  // The first n elements of a vector.
  DRELUOP_DEVICE void compute(int64_t i, int n) const {
    const Pack<T, kVec> g = unpack<T, kVec>(p.operands.load<T, kVec>(kGrad, i, n));
    Pack<T, kVec> dx;
    if (p.width.data != nullptr)
      soften(i, n, g, &dx);
    else
      pass(i, n, g, &dx);
    p.operands.store<T, kVec>(kDx, i, n, dx);
  }

  DRELUOP_DEVICE void pass(int64_t i, int n, const Pack<T, kVec>& g, Pack<T, kVec>* dx) const {
    if (p.mask != nullptr) {
#pragma unroll
      for (int e = 0; e < kVec; ++e) {
        const int64_t at = e < n ? i + e : i;
        const bool on = region_in_byte(p.mask[at / kElementsPerByte], static_cast<int>(at % kElementsPerByte)) != kOff;
        dx->v[e] = select(on, g.v[e], Traits::zero());
      }
    } else {
      const Pack<T, kVec> y = unpack<T, kVec>(p.operands.load<T, kVec>(kSaved, i, n));
#pragma unroll
      for (int e = 0; e < kVec; ++e) dx->v[e] = select(passes<Traits>(y.v[e]), g.v[e], Traits::zero());
    }
  }

  DRELUOP_DEVICE void soften(int64_t i, int n, const Pack<T, kVec>& g, Pack<T, kVec>* dx) const {
    const Pack<T, kVec> x = unpack<T, kVec>(p.operands.load<T, kVec>(kSaved, i, n));
    const Caps caps(p.map, i);
    T cap[kVec];
    Real width[kVec];
    caps.read_as(p.cap, cap);
    caps.read(p.width, width);
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      const Real m = Working<Traits>::upcast(cap[e]);
      const Real result = softened(Working<Traits>::upcast(g.v[e]), Working<Traits>::upcast(x.v[e]), m, width[e]);
      dx->v[e] = Working<Traits>::round(result);
    }
  }

  DRELUOP_DEVICE void run() const {
    const int64_t first = static_cast<int64_t>(blockIdx.x) * (kFlatThreads * kInFlightOfTwo) + threadIdx.x;
#pragma unroll 1
    for (int k = 0; k < kInFlightOfTwo; ++k) {
      const int64_t i = (first + k * kFlatThreads) * kVec;
      if (i < p.plan.numel) compute(i, static_cast<int>(min(p.plan.numel - i, int64_t{kVec})));
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(kFlatThreads) surrogate_kernel(const __grid_constant__ SurrogateParameters p) {
  SurrogatePass<Traits>{p}.run();
}

}  // namespace dreluop::cuda
