// Forward for tensors that lie anyhow: at odd strides or addresses, in fp64, with caps that change within a vector.
#pragma once

#include "cuda/forward.cuh"

namespace dreluop::cuda {

template <class DTypeTraits>
using GeneralForwardTraits = ForwardTraits<DTypeTraits, Access::kGeneral, CapMode::kEach, true>;

template <class Traits>
__global__ void __launch_bounds__(kFlatThreads, 3)
    forward_general_kernel(const __grid_constant__ typename Traits::Parameters p) {
  using Pass = ForwardPass<Traits>;
  const int64_t block = static_cast<int64_t>(blockIdx.x) - p.penalty.blocks;
  if (block < 0) return p.penalty.run(blockIdx.x);
  const int64_t first = block * (kFlatThreads * p.plan.per_thread) + threadIdx.x;
#pragma unroll 1
  for (int u = 0; u < p.plan.per_thread; ++u) {
    const int64_t i = (first + u * kFlatThreads) * Traits::kVec;
    if (i >= p.plan.numel) return;
    const int n = static_cast<int>(min(p.plan.numel - i, int64_t{Traits::kVec}));
    typename Traits::Vec residual = {};
    if (p.has_residual) residual = p.operands.template load<Traits>(Pass::kResidual, i, n);
    const CapsOfVec<Traits> caps(p.map, i);
    typename Traits::Values cap;
    caps.read_as(p.cap, cap.v);
    Pass{p}.compute(i, n, p.operands.template load<Traits>(Pass::kX, i, n), residual, caps, cap);
  }
}

}  // namespace dreluop::cuda
