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
  using typename Base::Wide;

  // A stretch of one run, by a warp.
  DRELUOP_DEVICE void piece(int64_t begin, int64_t length, Wide one, Sum<Real>* sums) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    Wide cap[kGroup];
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
  DRELUOP_DEVICE void batch(Kept nothing, int64_t begin, int64_t g, int64_t groups, const Wide* cap,
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
    using P = Partial<Real>;
    const uint32_t caps = static_cast<uint32_t>(p.layout.caps);
    const int64_t split = blockIdx.x / caps, c = blockIdx.x % caps, inner = p.layout.inner;
    const Wide cap = this->cap_of(c);
    Sum<Real> sums[kSums];
    const int64_t at = (split * kRowWarps + threadIdx.x / kWarp) * p.rows.share;
    if (int64_t left = min(p.rows.total - at, p.rows.share); left > 0) {
      const int64_t run = static_cast<int64_t>(p.map.inner.quotient(static_cast<uint64_t>(at)));
      int64_t begin = run * (p.layout.caps - 1) * inner + c * inner + at;
      int64_t length = min((run + 1) * inner - at, left);
      for (;;) {
        piece(begin, length, cap, sums);
        left -= length;
        if (left <= 0) break;
        begin += length + (p.layout.caps - 1) * inner;
        length = min(inner, left);
      }
    }
    auto* shared = reinterpret_cast<P*>(shared_memory() + kSlotBytes);
    const Terms<P> local{shared, 1, kRowThreads, 1, 1, 0, 0, 1};
    p.finish.template run<kSums>(local, c, c, split, reinterpret_cast<unsigned*>(shared_memory()), [&](int s) {
      shared[threadIdx.x] = partial_of(s == kCapSum ? sums[kCapSum] : sums[kSums - 1]);
    });
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
