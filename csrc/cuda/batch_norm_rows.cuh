// A step of batch normalization where a channel has long runs of elements: a block takes a share of one channel.
#pragma once

#include "cuda/batch_norm_sums.cuh"

namespace dreluop::cuda {

template <class StepOfKernel>
struct BatchNormRows {
  using Traits = typename StepOfKernel::Traits;
  using Real = typename Traits::SumType;
  static constexpr int kSums = Traits::kSums, kVec = Traits::kVec, kVecs = StepOfKernel::kVecs;

  const StepOfKernel& step;
  const Numbers<Traits>& numbers;
  Sum<Real>* sums;

  // Vectors g, g + stride, ... below `vecs`, of which place(g) is the first element.
  template <class Position>
  DRELUOP_DEVICE void batch(int64_t g, int stride, int64_t vecs, const Position& place) const {
    typename StepOfKernel::Loaded loaded[kVecs];
    int64_t at[kVecs];
#pragma unroll
    for (int u = 0; u < kVecs; ++u) {
      loaded[u] = {};
      at[u] = place(g + u * stride);
      if (g + u * stride < vecs) loaded[u] = step.template load<true>(at[u], kVec);
    }
    Real some[Traits::kSumSlots] = {};
#pragma unroll
    for (int u = 0; u < kVecs; ++u) {
      Real terms[Traits::kSumSlots][kVec];
      step.template use<true>(at[u], g + u * stride < vecs ? kVec : 0, loaded[u], numbers, terms);
#pragma unroll
      for (int s = 0; s < kSums; ++s) some[s] += pairwise<kVec>(terms[s]);
    }
#pragma unroll
    for (int s = 0; s < kSums; ++s) sums[s].add(some[s]);
  }

  // The first n elements of a vector that may lie anyhow.
  DRELUOP_DEVICE void part(int64_t i, int n) const {
    Real terms[Traits::kSumSlots][kVec];
    step.template use<false>(i, n, step.template load<false>(i, n), numbers, terms);
#pragma unroll
    for (int s = 0; s < kSums; ++s) sums[s].add(pairwise<kVec>(terms[s]));
  }

  DRELUOP_DEVICE void packed(int64_t c, int64_t split) const {
    const auto& p = step.p;
    const RowPlan& plan = p.rows;
    const int64_t inner = p.layout.inner, between = (p.layout.caps - 1) * inner, first = p.head + c * inner;
    const auto place = [&](int64_t g) {
      const int64_t k = in_turn<Traits>(g, plan.vecs);
      return first + k * kVec + between * p.runs.quotient_of(k);
    };
#pragma unroll 1
    for (int64_t g = split * (kRowThreads * kVecs) + threadIdx.x; g < plan.vecs;
         g += plan.splits * (kRowThreads * kVecs))
      batch(g, kRowThreads, plan.vecs, place);
    // Of a single channel: the elements around the vectors, a thread each.
    if (p.layout.caps == 1 && split == 0 && static_cast<int64_t>(threadIdx.x) < p.numel - plan.vecs * kVec) {
      const int64_t e = threadIdx.x;
      part(e < p.head ? e : plan.vecs * kVec + e, 1);
    }
  }

  // A stretch of one run, by a warp.
  DRELUOP_DEVICE void segment(int64_t begin, int64_t length) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const auto to_vec =
        static_cast<int64_t>((static_cast<uint64_t>(step.p.head) - static_cast<uint64_t>(begin)) % kVec);
    const int head = static_cast<int>(to_vec < length ? to_vec : length);
    const int64_t vecs = (length - head) / kVec, first = begin + head;
#pragma unroll 1
    for (int64_t g = lane; g < vecs; g += kWarp * kVecs)
      batch(g, kWarp, vecs, [&](int64_t k) { return first + k * kVec; });
    if (lane < static_cast<int>(length - vecs * kVec)) part(begin + (lane < head ? lane : vecs * kVec + lane), 1);
  }

  DRELUOP_DEVICE void in_segments(int64_t c, int64_t split) const {
    const auto& p = step.p;
    const RowPlan& plan = p.rows;
#pragma unroll 1
    for (int64_t turn = split * kRowWarps + threadIdx.x / kWarp; turn < plan.segments;
         turn += plan.splits * kRowWarps) {
      const int64_t k = in_turn<Traits>(turn, plan.segments), run = p.runs.quotient_of(k);
      const int64_t from = (k - run * plan.segments_per_run) * plan.segment_size;
      segment((run * p.layout.caps + c) * p.layout.inner + from, min(plan.segment_size, p.layout.inner - from));
    }
  }
};

template <class Traits>
DRELUOP_DEVICE void run_batch_norm_rows(const typename Traits::Parameters& p) {
  using P = Partial<typename Traits::SumType>;
  const auto caps = static_cast<uint32_t>(p.layout.caps);
  const auto block = static_cast<uint32_t>(in_turn<Traits>(blockIdx.x, gridDim.x));
  const int64_t split = block / caps, c = block % caps;
  Numbers<Traits> numbers;
  const Channel<Traits> channel = *shared_channels<Traits>(p, c, 1);
#pragma unroll
  for (int e = 0; e < Traits::kVec; ++e) numbers.set(e, channel);
  __syncthreads();
  Sum<typename Traits::SumType> sums[Traits::kSumSlots];
  with_step<Traits>(p, [&](auto step) {
    const BatchNormRows<decltype(step)> rows{step, numbers, sums};
    if constexpr (Traits::kPacked)
      rows.packed(c, split);
    else
      rows.in_segments(c, split);
  });
  if constexpr (Traits::kSums > 0) {
    auto* shared = reinterpret_cast<P*>(shared_memory() + kTicketBytes);
    const Terms<P> local{shared, 1, kRowThreads, kRowThreads, 0};
    ChannelReduction<Traits>{p}.run(local, c, c, split, [&](int k) {
#pragma unroll
      for (int s = 0; s < Traits::kSums; ++s)
        if (s == k) shared[threadIdx.x] = partial_of(sums[s]);
    });
  }
}

template <class Traits>
__global__ void __launch_bounds__(kRowThreads, Traits::kGeneral ? 2 : 3)
    batch_norm_rows_kernel(const __grid_constant__ typename Traits::Parameters p) {
  run_batch_norm_rows<Traits>(p);
}

}  // namespace dreluop::cuda
