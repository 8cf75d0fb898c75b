// Backward where a cap has short runs, or one element per row: a thread sums for a vector of columns.
#pragma once

#include "cuda/routing.cuh"

namespace dreluop::cuda {

template <class Traits>
struct BackwardColumns : Routing<Traits> {
  using Base = Routing<Traits>;
  using Base::kSums;
  using Base::kVec;
  using Base::kVecs;
  using Base::p;
  using typename Base::Real;
  using typename Base::T;
  using typename Base::Values;
  using typename Base::Vec;
  using P = Partial<Real>;
  // Batches whose terms are added as they come, before they are added to a sum with its error: at most eight terms.
  static constexpr int kPlainBatches = 8 / kVecs;

  // This thread's columns begin at `column` and end after n; w and h are its place in the block.
  struct Position {
    int64_t column;
    int n;
    int w, h;
  };

  DRELUOP_DEVICE Position place(int64_t tile) const {
    const ColumnPlan& plan = p.columns;
    Position at;
    at.w = static_cast<int>(threadIdx.x) % plan.width;
    at.h = static_cast<int>(threadIdx.x) / plan.width;
    at.column = (tile * plan.width + at.w) * kVec;
    at.n = at.h < plan.height ? static_cast<int>(max(int64_t{0}, min(int64_t{kVec}, plan.row - at.column))) : 0;
    return at;
  }

  // All asked for before the first is used.
  DRELUOP_DEVICE Values read_caps(const Position& at) const {
    Values cap;
    int64_t left, c = p.map.cap_of(at.column, &left);
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      cap.v[e] = e < at.n ? this->cap_of(c) : Traits::Number::zero();
      if (--left > 0) continue;
      left = p.layout.inner;
      c = p.map.after(c);
    }
    return cap;
  }

  // Batches of rows from that of element i down, of the `left` that there are; from batch to batch `rows` further on.
  template <class SavedInfo>
  DRELUOP_DEVICE void batches(SavedInfo nothing, int n, int64_t i, int64_t left, int64_t rows, const Values& cap,
                              Real (*sums)[kVec]) const {
    constexpr int kMany = SavedInfo::kBatches * kVecs;
    Vec grad[kMany];
    SavedInfo kept[kMany];
    const auto down = [&](int u) { return u / kVecs * rows + u % kVecs * p.columns.height; };
    const auto at = [&](int u) { return i + down(u) * p.columns.row; };
#pragma unroll
    for (int u = 0; u < kMany; ++u) {
      grad[u] = {};
      kept[u] = nothing;
      if (down(u) >= left) continue;
      grad[u] = this->load_grad(at(u), n);
      kept[u] = SavedInfo::load(p.saved, at(u), n, cap);
    }
#pragma unroll
    for (int u = 0; u < kMany; ++u) {
      Real cap_terms[kVec], bias_terms[kVec];
      this->route(at(u), n, down(u) < left, grad[u], kept[u], cap, cap_terms, bias_terms);
#pragma unroll
      for (int e = 0; e < kVec; ++e) {
        sums[kCapSum][e] += cap_terms[e];
        if constexpr (kSums == 2) sums[kBiasSum][e] += bias_terms[e];
      }
    }
  }

  template <class SavedInfo>
  DRELUOP_DEVICE void all_batches(SavedInfo nothing, const Position& at, int64_t row_block, const Values& cap,
                                  Sum<Real> (*sums)[kVec]) const {
    constexpr int kBatches = SavedInfo::kBatches;
    const int batch_rows = kVecs * p.columns.height, first = static_cast<int>(row_block) * batch_rows + at.h;
    const int64_t rows = p.columns.row_blocks * batch_rows;
    int64_t i = first * p.columns.row + at.column, left = p.columns.rows - first;
#pragma unroll 1
    while (left > 0) {
      Real some[kSums][kVec] = {};
#pragma unroll 1
      for (int b = 0; b < kPlainBatches && left > 0; b += kBatches) {
        batches(nothing, at.n, i, left, rows, cap, some);
        i += kBatches * rows * p.columns.row;
        left -= kBatches * rows;
      }
#pragma unroll
      for (int s = 0; s < kSums; ++s)
#pragma unroll
        for (int e = 0; e < kVec; ++e) sums[s][e].add(some[s][e]);
    }
  }

  // Elements after the last whole row, one by one, onto the sums of the block's first row.
  DRELUOP_DEVICE void cut_row(int s, P* shared) const {
    const int64_t begin = p.columns.rows * p.columns.row;
#pragma unroll 1
    for (int64_t i = begin + threadIdx.x; i < p.numel; i += kColumnThreads) {
      int64_t left;
      const T g = p.saved.operands.template at<Traits>(Base::kGrad, i);
      const uint8_t region = p.saved.template region<Traits>(i, this->cap_of(p.map.cap_of(i, &left)));
      if (region == (s == kCapSum ? kCapped : kInside)) add_term(&shared[i - begin], this->upcast(g));
      // Last, as dx may be the gradient's memory.
      if (s == kSums - 1 && p.wants_x)
        p.saved.operands.template at<Traits>(Base::kDx, i) = region == kInside ? g : Traits::Number::zero();
    }
  }

  DRELUOP_DEVICE void run() const {
    const ColumnPlan& plan = p.columns;
    const uint32_t tiles = static_cast<uint32_t>(plan.tiles);
    const int64_t tile = blockIdx.x % tiles, row_block = blockIdx.x / tiles;
    const Position at = place(tile);
    const Values cap = read_caps(at);
    Sum<Real> sums[kSums][kVec];
    if (at.n > 0) this->with_saved([&](auto nothing) { all_batches(nothing, at, row_block, cap, sums); });
    auto* shared = reinterpret_cast<P*>(shared_memory() + kTicketBytes);
    const int64_t first = tile * plan.tile_caps, inner = p.layout.inner;
    const auto count = static_cast<uint32_t>(min(plan.tile_caps, p.layout.caps - first));
    const Terms<P> local{shared, count, static_cast<uint32_t>(inner * plan.repeat), static_cast<uint32_t>(inner),
                         count * inner};
    p.finish.template run<kSums>(local, tile, first, row_block, reinterpret_cast<unsigned*>(shared_memory()),
                                 [&](int s) {
                                   fill(at, s, sums, shared);
                                   if (row_block != plan.row_blocks - 1) return;
                                   __syncthreads();
                                   cut_row(s, shared);
                                 });
  }

  // One sum per column: those of the rows of threads are added up.
  DRELUOP_DEVICE void fill(const Position& at, int s, const Sum<Real> (*sums)[kVec], P* shared) const {
    const int columns = p.columns.width * kVec;
    if (at.h < p.columns.height) {
      P* to = shared + at.h * columns + at.w * kVec;
      // Not sums[s]: what is indexed at run time would lie in local memory.
      if (s == kCapSum) {
#pragma unroll
        for (int e = 0; e < kVec; ++e) to[e] = partial_of(sums[kCapSum][e]);
      } else {
#pragma unroll
        for (int e = 0; e < kVec; ++e) to[e] = partial_of(sums[kSums - 1][e]);
      }
    }
    if (p.columns.height == 1) return;
    __syncthreads();
#pragma unroll 1
    for (int c = threadIdx.x; c < columns; c += kColumnThreads) {
      P sum = shared[c];
#pragma unroll 1
      for (int h = 1; h < p.columns.height; ++h) add(&sum, shared[h * columns + c]);
      shared[c] = sum;
    }
  }
};

// How many of its blocks a multiprocessor holds. Two sums in double of eight columns need the registers of all.
template <class Traits>
constexpr int kColumnBlocks = Traits::kAccess == Access::kGeneral ? (Traits::kVec == 8 ? 1 : 2)
                              : Traits::kSums == 1                ? kColumnBlocksPerProcessor
                                                                  : 2;

template <class Traits>
__global__ void __launch_bounds__(kColumnThreads, kColumnBlocks<Traits>)
    backward_columns_kernel(const __grid_constant__ typename Traits::Parameters p) {
  BackwardColumns<Traits>{{p}}.run();
}

}  // namespace dreluop::cuda
