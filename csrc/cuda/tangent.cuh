// u where inside, v of the cap where capped, else 0: forward mode and double backward.
#pragma once

#include "cuda/caps.cuh"
#include "cuda/saved.cuh"

namespace dreluop::cuda {

struct TangentParameters {
  SavedReader<Access::kGeneral> saved;  // u, y, out
  FlatPlan plan;
  CapMap map;
  CapSource<Access::kGeneral> cap, v;  // data is null where not needed
};

template <class Traits>
struct TangentPass {
  using T = typename Traits::Storage;
  static constexpr int kVec = sizeof(T) == 2 ? 8 : 4;
  using Source = CapSource<Access::kGeneral>;
  using Caps = CapsOfVec<Traits, kVec, Access::kGeneral, CapMode::kEach>;
  using SavedInfo = SavedVec<Traits, kVec, Saved::kEither>;
  enum { kU, kY, kOut };

  const TangentParameters& p;

  // The first n elements of a vector.
  DRELUOP_DEVICE void compute(int64_t i, int n) const {
    const Vec<T, kVec> u = p.saved.operands.load<T, kVec>(kU, i, n);
    const Caps caps(p.map, i);
    Pack<T, kVec> cap, v;
    read_or_zero(caps, p.cap, cap.v);
    read_or_zero(caps, p.v, v.v);
    const auto where = SavedInfo::load(p.saved, i, n, cap).where(cap);
    const auto at_cap = only<T, kVec>(where.capped, bit_cast<Vec<T, kVec>>(v));
    p.saved.operands.store<T, kVec>(kOut, i, n, unpack<T, kVec>(chosen<T, kVec>(where.inside, u, at_cap)));
  }

  DRELUOP_DEVICE void read_or_zero(const Caps& caps, const Source& source, T* values) const {
#pragma unroll
    for (int e = 0; e < kVec; ++e) values[e] = Traits::zero();
    if (source.data != nullptr) caps.read_as(source, values);
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
__global__ void __launch_bounds__(kFlatThreads) tangent_kernel(const __grid_constant__ TangentParameters p) {
  TangentPass<Traits>{p}.run();
}

}  // namespace dreluop::cuda
