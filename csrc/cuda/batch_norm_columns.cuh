// A step of batch normalization where a channel has short runs, or one element per row: a thread keeps the numbers of a
// vector of columns, and goes down the rows.
#pragma once

#include "cuda/batch_norm_sums.cuh"

namespace dreluop::cuda {

// A thread's columns begin at `column` and end after n; w and h are its place in the block.
struct ColumnPosition {
  int64_t column;
  int n;
  int w, h;
};

template <class Traits>
DRELUOP_DEVICE ColumnPosition column_position(const ColumnPlan& plan, int64_t tile) {
  ColumnPosition at;
  at.w = static_cast<int>(threadIdx.x) % plan.width;
  at.h = static_cast<int>(threadIdx.x) / plan.width;
  at.column = (tile * plan.width + at.w) * Traits::kVec;
  at.n = at.h < plan.height ? static_cast<int>(max(int64_t{0}, min(int64_t{Traits::kVec}, plan.row - at.column))) : 0;
  return at;
}

template <class Traits>
DRELUOP_DEVICE void read_numbers(const typename Traits::Parameters& p, const ColumnPosition& at, int64_t first,
                                 const Channel<Traits>* channels, Numbers<Traits>* numbers) {
  int64_t left, c = p.map.cap_of(at.column, &left);
#pragma unroll
  for (int e = 0; e < Traits::kVec; ++e) {
    Channel<Traits> channel{};
    if (e < at.n) channel = channels[c - first];
    numbers->set(e, channel);
    p.map.advance(&c, &left);
  }
}

// How many of its blocks a multiprocessor holds. Three sums of eight columns need the registers of all.
template <class Traits>
constexpr int kBatchNormColumnBlocks =
    Traits::kSums * Traits::kVec > 16 || (Traits::kGeneral && Traits::kSums > 0) ? 1 : 2;

template <class StepOfKernel>
struct BatchNormColumns {
  using Traits = typename StepOfKernel::Traits;
  using Real = typename Traits::SumType;
  static constexpr int kSums = Traits::kSums, kVec = Traits::kVec;
  // A block that is alone has twice as many loads in flight.
  static constexpr int kVecs = StepOfKernel::kVecs * (kBatchNormColumnBlocks<Traits> == 1 && !Traits::kGeneral ? 2 : 1);
  // Batches whose terms are added as they come, before they are added to a sum with its error: at most eight terms.
  static constexpr int kPlainBatches = 8 / kVecs;

  const StepOfKernel& step;
  const Numbers<Traits>& numbers;
  Sum<Real> (*sums)[kVec];

  // Rows from that of element i on, `row` apart, of the `left` that there are.
  DRELUOP_DEVICE void batch(int n, int64_t i, int64_t row, int64_t left, Real (*some)[kVec]) const {
    const ColumnPlan& plan = step.p.columns;
    typename StepOfKernel::Loaded loaded[kVecs];
    const auto at = [&](int u) { return i + u * plan.height * row; };
#pragma unroll
    for (int u = 0; u < kVecs; ++u) {
      loaded[u] = {};
      if (u * plan.height < left) loaded[u] = step.template load<true>(at(u), n);
    }
#pragma unroll
    for (int u = 0; u < kVecs; ++u) {
      Real terms[Traits::kSumSlots][kVec];
      step.template use<true>(at(u), u * plan.height < left ? n : 0, loaded[u], numbers, terms);
#pragma unroll
      for (int s = 0; s < kSums; ++s)
#pragma unroll
        for (int e = 0; e < kVec; ++e) some[s][e] += terms[s][e];
    }
  }

  DRELUOP_DEVICE void add(const Real (*some)[kVec]) const {
#pragma unroll
    for (int s = 0; s < kSums; ++s)
#pragma unroll
      for (int e = 0; e < kVec; ++e) sums[s][e].add(some[s][e]);
  }

  DRELUOP_DEVICE void run(const ColumnPosition& at, int64_t row_block) const {
    const ColumnPlan& plan = step.p.columns;
    const int batch_rows = kVecs * plan.height, first = static_cast<int>(row_block) * batch_rows + at.h;
    const int64_t rows = plan.row_blocks * batch_rows, row = Traits::kFromTheEnd ? -plan.row : plan.row;
    int64_t i = in_turn<Traits>(first, plan.rows) * plan.row + at.column, left = plan.rows - first;
#pragma unroll 1
    while (left > 0) {
      Real some[Traits::kSumSlots][kVec] = {};
#pragma unroll 1
      for (int b = 0; b < kPlainBatches && left > 0; ++b) {
        batch(at.n, i, row, left, some);
        i += rows * row;
        left -= rows;
      }
      add(some);
    }
    if (row_block == plan.row_blocks - 1 && at.h == 0) cut_row(at);
  }

  // The elements after the last whole row.
  DRELUOP_DEVICE void cut_row(const ColumnPosition& at) const {
    const int64_t i = step.p.columns.rows * step.p.columns.row + at.column;
    const int n = static_cast<int>(min(int64_t{at.n}, step.p.numel - i));
    if (n <= 0) return;
    Real terms[Traits::kSumSlots][kVec];
    step.template use<false>(i, n, step.template load<false>(i, n), numbers, terms);
    add(terms);
  }
};

// Sums per column in shared memory: those of the rows of threads are added up.
template <class Traits, class P>
DRELUOP_DEVICE void fill_columns(const ColumnPlan& plan, const ColumnPosition& at, int k,
                                 const Sum<typename Traits::SumType> (*sums)[Traits::kVec], P* shared) {
  const int columns = plan.width * Traits::kVec;
  if (at.h < plan.height) {
    P* to = shared + at.h * columns + at.w * Traits::kVec;
    // Not sums[k]: what is indexed at run time would lie in local memory.
#pragma unroll
    for (int s = 0; s < Traits::kSums; ++s)
      if (s == k) {
#pragma unroll
        for (int e = 0; e < Traits::kVec; ++e) to[e] = partial_of(sums[s][e]);
      }
  }
  if (plan.height == 1) return;
  __syncthreads();
#pragma unroll 1
  for (int c = threadIdx.x; c < columns; c += kColumnThreads) {
    P sum = shared[c];
#pragma unroll 1
    for (int h = 1; h < plan.height; ++h) add(&sum, shared[h * columns + c]);
    shared[c] = sum;
  }
}

template <class Traits>
DRELUOP_DEVICE void run_batch_norm_columns(const typename Traits::Parameters& p) {
  using P = Partial<typename Traits::SumType>;
  const ColumnPlan& plan = p.columns;
  const auto tiles = static_cast<uint32_t>(plan.tiles);
  const int64_t tile = blockIdx.x % tiles, row_block = blockIdx.x / tiles, first = tile * plan.tile_caps;
  const auto count = static_cast<uint32_t>(min(plan.tile_caps, p.layout.caps - first));
  const ColumnPosition at = column_position<Traits>(plan, tile);
  Numbers<Traits> numbers;
  read_numbers(p, at, first, shared_channels<Traits>(p, first, count), &numbers);
  __syncthreads();
  Sum<typename Traits::SumType> sums[Traits::kSumSlots][Traits::kVec];
  if (at.n > 0)
    with_step<Traits>(p, [&](auto step) { BatchNormColumns<decltype(step)>{step, numbers, sums}.run(at, row_block); });
  if constexpr (Traits::kSums > 0) {
    auto* shared = reinterpret_cast<P*>(shared_memory() + kTicketBytes);
    const int64_t inner = p.layout.inner;
    const Terms<P> local{shared, count, static_cast<uint32_t>(inner * plan.repeat), static_cast<uint32_t>(inner),
                         count * inner};
    ChannelReduction<Traits>{p}.run(local, tile, first, row_block,
                                    [&](int k) { fill_columns<Traits>(plan, at, k, sums, shared); });
  }
}

template <class Traits>
__global__ void __launch_bounds__(kColumnThreads, kBatchNormColumnBlocks<Traits>)
    batch_norm_columns_kernel(const __grid_constant__ typename Traits::Parameters p) {
  run_batch_norm_columns<Traits>(p);
}

}  // namespace dreluop::cuda
