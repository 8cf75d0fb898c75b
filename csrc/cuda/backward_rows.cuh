// Backward where a cap has long runs of elements: a block sums for one cap.
#pragma once

#include "cuda/routing.cuh"

namespace dreluop::cuda {

template <class Traits>
struct BackwardRows : Routing<Traits> {
  using Base = Routing<Traits>;
  using Base::kSums;
  using Base::kVec;
  using Base::kVecs;
  using Base::p;
  using typename Base::Real;
  using typename Base::T;
  using typename Base::Values;
  using typename Base::Vec;

  // Batches of vectors g, g + stride, ... below `vecs`, of which place(g) is the first element; from batch to batch
  // `step` further on.
  template <class SavedInfo, class Position>
  DRELUOP_DEVICE void batches(SavedInfo nothing, int64_t g, int64_t step, int stride, int64_t vecs,
                              const Position& place, T one, Sum<Real>* sums) const {
    Values cap;
#pragma unroll
    for (int e = 0; e < kVec; ++e) cap.v[e] = one;
    constexpr int kMany = SavedInfo::kBatches * kVecs;
    Vec grad[kMany];
    SavedInfo kept[kMany];
    int64_t at[kMany];
    const auto vec_at = [&](int u) { return g + u / kVecs * step + u % kVecs * stride; };
#pragma unroll
    for (int u = 0; u < kMany; ++u) {
      grad[u] = {};
      kept[u] = nothing;
      at[u] = place(vec_at(u));
      if (vec_at(u) >= vecs) continue;
      grad[u] = this->load_grad(at[u], kVec);
      kept[u] = SavedInfo::load(p.saved, at[u], kVec, cap);
    }
#pragma unroll
    for (int b = 0; b < kMany; b += kVecs) {
      Real to_cap = 0, to_bias = 0;
#pragma unroll
      for (int u = b; u < b + kVecs; ++u) {
        Real cap_terms[kVec], bias_terms[kVec];
        this->route(at[u], kVec, vec_at(u) < vecs, grad[u], kept[u], cap, cap_terms, bias_terms);
        to_cap += pairwise<kVec>(cap_terms);
        if constexpr (kSums == 2) to_bias += pairwise<kVec>(bias_terms);
      }
      sums[kCapSum].add(to_cap);
      if constexpr (kSums == 2) sums[kBiasSum].add(to_bias);
    }
  }

  DRELUOP_DEVICE void packed(int64_t c, int64_t split, T cap, Sum<Real>* sums) const {
    const RowPlan& plan = p.rows;
    const int64_t inner = p.layout.inner, between = (p.layout.caps - 1) * inner, first = p.head + c * inner;
    const auto place = [&](int64_t g) { return first + g * kVec + between * p.runs.quotient_of(g); };
    const int64_t step = plan.splits * (kRowThreads * kVecs);
    this->with_saved([&](auto nothing) {
#pragma unroll 1
      for (int64_t g = split * (kRowThreads * kVecs) + threadIdx.x; g < plan.vecs; g += nothing.kBatches * step)
        batches(nothing, g, step, kRowThreads, plan.vecs, place, cap, sums);
    });
    // For a single cap: the elements around the vectors.
    if (p.layout.caps == 1 && split == 0 && static_cast<int64_t>(threadIdx.x) < p.numel - plan.vecs * kVec) {
      const int64_t e = threadIdx.x;
      this->route_one(e < p.head ? e : plan.vecs * kVec + e, cap, sums);
    }
  }

  // A stretch of one run, by a warp.
  DRELUOP_DEVICE void segment(int64_t begin, int64_t length, T cap, Sum<Real>* sums) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t to_vec = static_cast<int64_t>((static_cast<uint64_t>(p.head) - static_cast<uint64_t>(begin)) % kVec);
    const int head = static_cast<int>(to_vec < length ? to_vec : length);
    const int64_t vecs = (length - head) / kVec, first = begin + head;
    const auto place = [&](int64_t g) { return first + g * kVec; };
    constexpr int kStep = kWarp * kVecs;
    this->with_saved([&](auto nothing) {
#pragma unroll 1
      for (int64_t g = lane; g < vecs; g += nothing.kBatches * kStep)
        batches(nothing, g, kStep, kWarp, vecs, place, cap, sums);
    });
    const int edges = static_cast<int>(length - vecs * kVec);
    if (lane < edges) this->route_one(begin + (lane < head ? lane : vecs * kVec + lane), cap, sums);
  }

  DRELUOP_DEVICE void in_segments(int64_t c, int64_t split, T cap, Sum<Real>* sums) const {
    const RowPlan& plan = p.rows;
#pragma unroll 1
    for (int64_t k = split * kRowWarps + threadIdx.x / kWarp; k < plan.segments; k += plan.splits * kRowWarps) {
      const int64_t run = p.runs.quotient_of(k), from = (k - run * plan.segments_per_run) * plan.segment_size;
      segment((run * p.layout.caps + c) * p.layout.inner + from, min(plan.segment_size, p.layout.inner - from), cap,
              sums);
    }
  }

  DRELUOP_DEVICE void run() const {
    using P = Partial<Real>;
    const uint32_t caps = static_cast<uint32_t>(p.layout.caps);
    const int64_t split = blockIdx.x / caps, c = blockIdx.x % caps;
    const T cap = this->cap_of(c);
    Sum<Real> sums[kSums];
    if constexpr (Traits::kPacked)
      packed(c, split, cap, sums);
    else
      in_segments(c, split, cap, sums);
    auto* shared = reinterpret_cast<P*>(shared_memory() + kTicketBytes);
    const Terms<P> local{shared, 1, kRowThreads, kRowThreads, 0};
    const P to_cap = partial_of(sums[kCapSum]), to_bias = partial_of(sums[kSums - 1]);
    p.finish.template run<kSums>(local, c, c, split, reinterpret_cast<unsigned*>(shared_memory()),
                                 [&](int s) { shared[threadIdx.x] = s == kCapSum ? to_cap : to_bias; });
  }
};

template <class Traits>
__global__ void __launch_bounds__(kRowThreads, Traits::kAccess == Access::kGeneral ? 2
                                               : Traits::kSums == 1                ? kRowBlocksPerProcessor
                                                                                   : 3)
    backward_rows_kernel(const __grid_constant__ typename Traits::Parameters p) {
  BackwardRows<Traits>{{p}}.run();
}

}  // namespace dreluop::cuda
