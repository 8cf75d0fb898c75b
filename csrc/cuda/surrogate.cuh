// The gradients of attacks: straight through the cap, or smoothed.
#pragma once

#include "cuda/caps.cuh"
#include "dreluop/surrogate.h"

namespace dreluop::cuda {

struct SurrogateParameters {
  Operands<Access::kGeneral> operands;  // grad, saved, dx
  const uint8_t* code;
  FlatPlan plan;
  CapMap map;
  CapSource<Access::kGeneral> cap, width;  // data is null in the straight-through form
};

template <class Format>
struct SurrogatePass {
  using T = typename Format::Storage;
  using Real = typename Working<Format>::Real;
  static constexpr int kGroup = sizeof(T) == 2 ? 8 : 4;
  using Caps = CapsOfGroup<Format, kGroup, Access::kGeneral, CapMode::kEach>;
  enum { kGrad, kSaved, kDx };

  const SurrogateParameters& p;

  // The first n elements of a group.
  DRELUOP_DEVICE void compute(int64_t i, int n) const {
    const Pack<T, kGroup> g = unpack<T, kGroup>(p.operands.load<T, kGroup>(kGrad, i, n));
    Pack<T, kGroup> dx;
    if (p.width.data != nullptr)
      soften(i, n, g, &dx);
    else
      pass(i, n, g, &dx);
    p.operands.store<T, kGroup>(kDx, i, n, dx);
  }

  DRELUOP_DEVICE void pass(int64_t i, int n, const Pack<T, kGroup>& g, Pack<T, kGroup>* dx) const {
    if (p.code != nullptr) {
#pragma unroll
      for (int e = 0; e < kGroup; ++e) {
        const int64_t at = e < n ? i + e : i;
        const bool on = region_in_byte(p.code[at / kCodesPerByte], static_cast<int>(at % kCodesPerByte)) != kOff;
        dx->v[e] = select(on, g.v[e], Format::zero());
      }
    } else {
      const Pack<T, kGroup> y = unpack<T, kGroup>(p.operands.load<T, kGroup>(kSaved, i, n));
#pragma unroll
      for (int e = 0; e < kGroup; ++e) dx->v[e] = select(passes<Format>(y.v[e]), g.v[e], Format::zero());
    }
  }

  DRELUOP_DEVICE void soften(int64_t i, int n, const Pack<T, kGroup>& g, Pack<T, kGroup>* dx) const {
    const Pack<T, kGroup> x = unpack<T, kGroup>(p.operands.load<T, kGroup>(kSaved, i, n));
    const Caps caps(p.map, i);
    T cap[kGroup];
    Real width[kGroup];
    caps.read_as(p.cap, cap);
    caps.read(p.width, width);
#pragma unroll
    for (int e = 0; e < kGroup; ++e) {
      const Real m = Working<Format>::widen(cap[e]);
      const Real result = softened(Working<Format>::widen(g.v[e]), Working<Format>::widen(x.v[e]), m, width[e]);
      dx->v[e] = Working<Format>::round(result);
    }
  }

  DRELUOP_DEVICE void run() const {
    const int64_t first = static_cast<int64_t>(blockIdx.x) * (kFlatThreads * kInFlightOfTwo) + threadIdx.x;
#pragma unroll 1
    for (int k = 0; k < kInFlightOfTwo; ++k) {
      const int64_t i = (first + k * kFlatThreads) * kGroup;
      if (i < p.plan.numel) compute(i, static_cast<int>(min(p.plan.numel - i, int64_t{kGroup})));
    }
  }
};

template <class Format>
__global__ void __launch_bounds__(kFlatThreads) surrogate_kernel(const __grid_constant__ SurrogateParameters p) {
  SurrogatePass<Format>{p}.run();
}

}  // namespace dreluop::cuda
