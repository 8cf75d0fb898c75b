// Backward where a cap has long runs of elements: a block sums for one cap.
#pragma once

#include "cuda/routing.cuh"

namespace dreluop::cuda {

template <class Format, Access kAccess, int kSums, bool kPacked>
struct BackwardRows : Routing<Format, kAccess, kSums> {
  using Base = Routing<Format, kAccess, kSums>;
  using Base::kGroup;
  using Base::kGroups;
  using Base::p;
  using typename Base::Real;
  using typename Base::T;

  // Batches of groups g, g + stride, ... below `groups`, of which place(g) is the first element; from batch to batch
  // `step` further on.
  template <class Kept, class Place>
  DRELUOP_DEVICE void batches(Kept nothing, int64_t g, int64_t step, int stride, int64_t groups, const Place& place,
                              T one, Sum<Real>* sums) const {
    Pack<T, kGroup> cap;
#pragma unroll
    for (int e = 0; e < kGroup; ++e) cap.v[e] = one;
    constexpr int kMany = Kept::kBatches * kGroups;
    Group<T, kGroup> grad[kMany];
    Kept kept[kMany];
    int64_t at[kMany];
    const auto group_at = [&](int u) { return g + u / kGroups * step + u % kGroups * stride; };
#pragma unroll
    for (int u = 0; u < kMany; ++u) {
      grad[u] = {};
      kept[u] = nothing;
      at[u] = place(group_at(u));
      if (group_at(u) >= groups) continue;
      grad[u] = this->load_grad(at[u], kGroup);
      kept[u] = Kept::load(p.saved, at[u], kGroup, cap);
    }
#pragma unroll
    for (int b = 0; b < kMany; b += kGroups) {
      Real to_cap = 0, to_bias = 0;
#pragma unroll
      for (int u = b; u < b + kGroups; ++u) {
        Real cap_terms[kGroup], bias_terms[kGroup];
        this->route(at[u], kGroup, group_at(u) < groups, grad[u], kept[u], cap, cap_terms, bias_terms);
        to_cap += pairwise<kGroup>(cap_terms);
        if constexpr (kSums == 2) to_bias += pairwise<kGroup>(bias_terms);
      }
      sums[kCapSum].add(to_cap);
      if constexpr (kSums == 2) sums[kBiasSum].add(to_bias);
    }
  }

  DRELUOP_DEVICE void packed(int64_t c, int64_t split, T cap, Sum<Real>* sums) const {
    const RowPlan& plan = p.rows;
    const int64_t inner = p.layout.inner, between = (p.layout.caps - 1) * inner, first = p.head + c * inner;
    const auto place = [&](int64_t g) { return first + g * kGroup + between * p.runs.quotient_of(g); };
    const int64_t step = plan.splits * (kRowThreads * kGroups);
    this->with_saved([&](auto nothing) {
#pragma unroll 1
      for (int64_t g = split * (kRowThreads * kGroups) + threadIdx.x; g < plan.groups; g += nothing.kBatches * step)
        batches(nothing, g, step, kRowThreads, plan.groups, place, cap, sums);
    });
    // Of a single cap, what lies around the groups.
    if (p.layout.caps == 1 && split == 0 && static_cast<int64_t>(threadIdx.x) < p.numel - plan.groups * kGroup) {
      const int64_t e = threadIdx.x;
      this->route_one(e < p.head ? e : plan.groups * kGroup + e, cap, sums);
    }
  }

  // A stretch of one run, by a warp.
  DRELUOP_DEVICE void piece(int64_t begin, int64_t length, T cap, Sum<Real>* sums) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t to_group =
        static_cast<int64_t>((static_cast<uint64_t>(p.head) - static_cast<uint64_t>(begin)) % kGroup);
    const int head = static_cast<int>(to_group < length ? to_group : length);
    const int64_t groups = (length - head) / kGroup, first = begin + head;
    const auto place = [&](int64_t g) { return first + g * kGroup; };
    constexpr int kStep = kWarp * kGroups;
    this->with_saved([&](auto nothing) {
#pragma unroll 1
      for (int64_t g = lane; g < groups; g += nothing.kBatches * kStep)
        batches(nothing, g, kStep, kWarp, groups, place, cap, sums);
    });
    const int edges = static_cast<int>(length - groups * kGroup);
    if (lane < edges) this->route_one(begin + (lane < head ? lane : groups * kGroup + lane), cap, sums);
  }

  DRELUOP_DEVICE void in_pieces(int64_t c, int64_t split, T cap, Sum<Real>* sums) const {
    const RowPlan& plan = p.rows;
#pragma unroll 1
    for (int64_t k = split * kRowWarps + threadIdx.x / kWarp; k < plan.pieces; k += plan.splits * kRowWarps) {
      const int64_t run = p.runs.quotient_of(k), from = (k - run * plan.chunks) * plan.chunk;
      piece((run * p.layout.caps + c) * p.layout.inner + from, min(plan.chunk, p.layout.inner - from), cap, sums);
    }
  }

  DRELUOP_DEVICE void run() const {
    using P = Partial<Real>;
    const uint32_t caps = static_cast<uint32_t>(p.layout.caps);
    const int64_t split = blockIdx.x / caps, c = blockIdx.x % caps;
    const T cap = this->cap_of(c);
    Sum<Real> sums[kSums];
    if constexpr (kPacked)
      packed(c, split, cap, sums);
    else
      in_pieces(c, split, cap, sums);
    auto* shared = reinterpret_cast<P*>(shared_memory() + kSlotBytes);
    const Terms<P> local{shared, 1, kRowThreads, kRowThreads, 0};
    const P to_cap = partial_of(sums[kCapSum]), to_bias = partial_of(sums[kSums - 1]);
    p.finish.template run<kSums>(local, c, c, split, reinterpret_cast<unsigned*>(shared_memory()),
                                 [&](int s) { shared[threadIdx.x] = s == kCapSum ? to_cap : to_bias; });
  }
};

template <class Format, Access kAccess, int kSums, bool kPacked>
__global__ void __launch_bounds__(kRowThreads, kAccess == Access::kGeneral ? 2
                                               : kSums == 1                ? kRowBlocksPerProcessor
                                                                           : 3)
    backward_rows_kernel(const __grid_constant__ typename Routing<Format, kAccess, kSums>::Parameters p) {
  BackwardRows<Format, kAccess, kSums, kPacked>{{p}}.run();
}

}  // namespace dreluop::cuda
