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

template <class Format>
struct TangentPass {
  using T = typename Format::Storage;
  static constexpr int kGroup = sizeof(T) == 2 ? 8 : 4;
  using Source = CapSource<Access::kGeneral>;
  using Caps = CapsOfGroup<Format, kGroup, Access::kGeneral, CapMode::kEach>;
  using Kept = SavedGroup<Format, kGroup, Saved::kEither>;
  enum { kU, kY, kOut };

  const TangentParameters& p;

  // The first n elements of a group.
  DRELUOP_DEVICE void compute(int64_t i, int n) const {
    const Group<T, kGroup> u = p.saved.operands.load<T, kGroup>(kU, i, n);
    const Caps caps(p.map, i);
    Pack<T, kGroup> cap, v;
    read_or_zero(caps, p.cap, cap.v);
    read_or_zero(caps, p.v, v.v);
    const auto where = Kept::load(p.saved, i, n, cap).where(cap);
    const auto at_cap = only<T, kGroup>(where.capped, bit_cast<Group<T, kGroup>>(v));
    p.saved.operands.store<T, kGroup>(kOut, i, n, unpack<T, kGroup>(chosen<T, kGroup>(where.inside, u, at_cap)));
  }

  DRELUOP_DEVICE void read_or_zero(const Caps& caps, const Source& source, T* values) const {
#pragma unroll
    for (int e = 0; e < kGroup; ++e) values[e] = Format::zero();
    if (source.data != nullptr) caps.read_as(source, values);
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
__global__ void __launch_bounds__(kFlatThreads) tangent_kernel(const __grid_constant__ TangentParameters p) {
  TangentPass<Format>{p}.run();
}

}  // namespace dreluop::cuda
