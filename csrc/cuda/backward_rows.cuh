// Backward where a cap has long runs of elements: a block sums for one cap.
#pragma once

#include "cuda/routing.cuh"

namespace dreluop::cuda {

template <class Format, Access kAccess, int kSums>
struct BackwardRows : Routing<Format, kAccess, kSums> {
  using Base = Routing<Format, kAccess, kSums>;
  using Base::kGroup;
  using Base::kGroups;
  using Base::p;
  using typename Base::Real;
  using typename Base::T;

  DRELUOP_DEVICE void piece(int64_t begin, int64_t length, T one, Sum<Real>* sums) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    T cap[kGroup];
#pragma unroll
    for (int e = 0; e < kGroup; ++e) cap[e] = one;
    const int64_t to_group =
        static_cast<int64_t>((static_cast<uint64_t>(p.head) - static_cast<uint64_t>(begin)) % kGroup);
    const int head = static_cast<int>(to_group < length ? to_group : length);
    const int64_t groups = (length - head) / kGroup;
#pragma unroll 1
    for (int64_t g = lane; g < groups; g += kWarp * kGroups)
      this->with_saved([&](auto nothing) { batch(nothing, begin + head, g, groups, cap, sums); });

    const int edges = static_cast<int>(length - groups * kGroup);
    if (lane < edges) this->route_one(begin + (lane < head ? lane : groups * kGroup + lane), one, sums);
  }

  template <class Kept>
  DRELUOP_DEVICE void batch(Kept nothing, int64_t begin, int64_t g, int64_t groups, const T* cap,
                            Sum<Real>* sums) const {
    Group<T, kGroup> grad[kGroups];
    Kept kept[kGroups];
#pragma unroll
    for (int u = 0; u < kGroups; ++u) {
      grad[u] = {};
      kept[u] = nothing;
      if (g + u * kWarp >= groups) continue;
      const int64_t i = begin + (g + u * kWarp) * kGroup;
      grad[u] = this->load_grad(i, kGroup);
      kept[u] = Kept::load(p.saved, i, kGroup, cap);
    }
    Real to_cap = 0, to_bias = 0;
#pragma unroll
    for (int u = 0; u < kGroups; ++u) {
      Real cap_terms[kGroup], bias_terms[kGroup];
      this->route(begin + (g + u * kWarp) * kGroup, kGroup, g + u * kWarp < groups, grad[u], kept[u], cap, cap_terms,
                  bias_terms);
      to_cap += pairwise<kGroup>(cap_terms);
      if constexpr (kSums == 2) to_bias += pairwise<kGroup>(bias_terms);
    }
    sums[kCapSum].add(to_cap);
    if constexpr (kSums == 2) sums[kBiasSum].add(to_bias);
  }

  DRELUOP_DEVICE void run() const {
    const uint32_t caps = static_cast<uint32_t>(p.layout.caps);
    const int64_t split = blockIdx.x / caps, c = blockIdx.x % caps;
    const int64_t end = min(p.rows.pieces, (split + 1) * p.rows.per_split);
    const T cap = this->cap_of(c);
    Sum<Real> sums[kSums];
#pragma unroll 1
    for (int64_t k = split * p.rows.per_split + threadIdx.x / kWarp; k < end; k += kRowThreads / kWarp) {
      const int64_t run = static_cast<int64_t>(p.chunks.quotient(static_cast<uint64_t>(k)));
      const int64_t from = (k - run * p.rows.chunks) * p.rows.chunk;
      piece((run * p.layout.caps + c) * p.layout.inner + from, min(p.rows.chunk, p.layout.inner - from), cap, sums);
    }
    auto* shared = reinterpret_cast<Sum<Real>*>(shared_memory() + kSlotBytes);
    const Terms<Real> local{shared, 1, kRowThreads, 1, 1, 0, 0, 1};
    p.finish.template run<kSums>(local, c, c, split, reinterpret_cast<unsigned*>(shared_memory()),
                                 [&](int s) { shared[threadIdx.x] = s == kCapSum ? sums[kCapSum] : sums[kSums - 1]; });
  }
};

template <class Format, Access kAccess, int kSums>
__global__ void __launch_bounds__(kRowThreads, kAccess == Access::kGeneral ? 2
                                               : kSums == 1                ? kRowBlocksPerProcessor
                                                                           : 3)
    backward_rows_kernel(const __grid_constant__ typename Routing<Format, kAccess, kSums>::Parameters p) {
  BackwardRows<Format, kAccess, kSums>{{p}}.run();
}

}  // namespace dreluop::cuda
