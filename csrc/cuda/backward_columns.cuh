// Backward where a cap has short runs, or one element per row: a thread sums for a group of columns.
#pragma once

#include "cuda/routing.cuh"

namespace dreluop::cuda {

template <class Format, Access kAccess, int kSums>
struct BackwardColumns : Routing<Format, kAccess, kSums> {
  using Base = Routing<Format, kAccess, kSums>;
  using Base::kGroup;
  using Base::kGroups;
  using Base::p;
  using typename Base::Real;
  using typename Base::T;
  using typename Base::Wide;
  using P = Partial<Real>;
  // Batches whose terms are added as they come, before they are added to a sum with its error: at most eight terms.
  static constexpr int kBatches = 8 / kGroups;

  // This thread's columns begin at `column` and end after n; its rows are every `height`-th of the block's.
  struct Place {
    int64_t column;
    int n;
    int w, h;
    int64_t first_row, end_row;
  };

  DRELUOP_DEVICE Place place() const {
    const ColumnPlan& plan = p.columns;
    const uint32_t tiles = static_cast<uint32_t>(plan.tiles);
    const int64_t tile = blockIdx.x % tiles, row_block = blockIdx.x / tiles;
    Place at;
    at.w = static_cast<int>(threadIdx.x) % plan.width;
    at.h = static_cast<int>(threadIdx.x) / plan.width;
    at.column = (tile * plan.width + at.w) * kGroup;
    at.n = at.h < plan.height ? static_cast<int>(max(int64_t{0}, min(int64_t{kGroup}, plan.row - at.column))) : 0;
    at.first_row = row_block * plan.per_block;
    at.end_row = min(plan.rows, at.first_row + plan.per_block);
    return at;
  }

  DRELUOP_DEVICE void read_caps(const Place& at, Wide* cap) const {
#pragma unroll
    for (int e = 0; e < kGroup; ++e) cap[e] = Wide(0);
    if (p.cap.data == nullptr || at.n == 0) return;
    Wide* room = room_of_thread<Wide>();
#pragma unroll 1
    for (int e = 0; e < kGroup; ++e) {
      int64_t left;
      room[e] = e < at.n ? this->cap_of(p.map.cap_of(at.column + e, &left)) : Wide(0);
    }
    const auto all = *reinterpret_cast<const Pack<Wide, kGroup>*>(room);
#pragma unroll
    for (int e = 0; e < kGroup; ++e) cap[e] = all.v[e];
  }

  // Rows from that of element i down, of which `left` are the block's.
  template <class Kept>
  DRELUOP_DEVICE void batch(Kept nothing, int n, int64_t i, int left, const Wide* cap, Real (*sums)[kGroup]) const {
    const int64_t step = p.columns.height * p.columns.row;
    Group<T, kGroup> grad[kGroups];
    Kept kept[kGroups];
#pragma unroll
    for (int u = 0; u < kGroups; ++u) {
      grad[u] = {};
      kept[u] = nothing;
      if (u * p.columns.height >= left) continue;
      grad[u] = this->load_grad(i + u * step, n);
      kept[u] = Kept::load(p.saved, i + u * step, n, cap);
    }
#pragma unroll
    for (int u = 0; u < kGroups; ++u) {
      Real cap_terms[kGroup], bias_terms[kGroup];
      this->route(i + u * step, n, u * p.columns.height < left, grad[u], kept[u], cap, cap_terms, bias_terms);
#pragma unroll
      for (int e = 0; e < kGroup; ++e) {
        sums[kCapSum][e] += cap_terms[e];
        if constexpr (kSums == 2) sums[kBiasSum][e] += bias_terms[e];
      }
    }
  }

  template <class Kept>
  DRELUOP_DEVICE void all_batches(Kept nothing, const Place& at, const Wide* cap, Sum<Real> (*sums)[kGroup]) const {
    const int rows = kGroups * p.columns.height;
    int64_t i = (at.first_row + at.h) * p.columns.row + at.column;
    int left = static_cast<int>(at.end_row - at.first_row) - at.h;
#pragma unroll 1
    while (left > 0) {
      Real some[kSums][kGroup] = {};
#pragma unroll 1
      for (int b = 0; b < kBatches && left > 0; ++b, i += rows * p.columns.row, left -= rows)
        batch(nothing, at.n, i, left, cap, some);
#pragma unroll
      for (int s = 0; s < kSums; ++s)
#pragma unroll
        for (int e = 0; e < kGroup; ++e) sums[s][e].add(some[s][e]);
    }
  }

  // Elements after the last whole row, one by one, onto the sums of the block's first row.
  DRELUOP_DEVICE void cut_row(int s, P* shared) const {
    const int64_t begin = p.columns.rows * p.columns.row;
#pragma unroll 1
    for (int64_t i = begin + threadIdx.x; i < p.numel; i += kColumnThreads) {
      int64_t left;
      const T g = p.saved.operands.template at<T>(Base::kGrad, i);
      const uint8_t region = p.saved.template region<Format>(i, this->cap_of(p.map.cap_of(i, &left)));
      if (region == (s == kCapSum ? kCapped : kInside)) add_term(&shared[i - begin], this->widen(g));
      // Last, as dx may be the gradient's memory.
      if (s == kSums - 1 && p.wants_x)
        p.saved.operands.template at<T>(Base::kDx, i) = region == kInside ? g : Format::zero();
    }
  }

  DRELUOP_DEVICE void run() const {
    const ColumnPlan& plan = p.columns;
    const Place at = place();
    const uint32_t tiles = static_cast<uint32_t>(plan.tiles);
    const int64_t tile = blockIdx.x % tiles, row_block = blockIdx.x / tiles;
    Wide cap[kGroup];
    read_caps(at, cap);
    Sum<Real> sums[kSums][kGroup];
    if (at.n > 0) this->with_saved([&](auto nothing) { all_batches(nothing, at, cap, sums); });
    auto* shared = reinterpret_cast<P*>(shared_memory() + kSlotBytes);
    const int columns = plan.width * kGroup;
    const int64_t first = tile * plan.tile_caps;
    const auto count = static_cast<uint32_t>(min(plan.tile_caps, p.layout.caps - first));
    const auto inner = static_cast<uint32_t>(p.layout.inner), repeat = static_cast<uint32_t>(plan.repeat);
    const Terms<P> local{shared, count, inner * repeat * plan.height, inner, repeat, count * inner, inner, columns};
    p.finish.template run<kSums>(local, tile, first, row_block, reinterpret_cast<unsigned*>(shared_memory()),
                                 [&](int s) {
                                   fill(at, s, sums, shared);
                                   if (row_block != plan.row_blocks - 1) return;
                                   __syncthreads();
                                   cut_row(s, shared);
                                 });
  }

  DRELUOP_DEVICE void fill(const Place& at, int s, const Sum<Real> (*sums)[kGroup], P* shared) const {
    if (at.h >= p.columns.height) return;
    P* to = shared + (at.h * p.columns.width + at.w) * kGroup;
#pragma unroll
    for (int e = 0; e < kGroup; ++e) to[e] = partial_of(s == kCapSum ? sums[kCapSum][e] : sums[kSums - 1][e]);
  }
};

template <class Format, Access kAccess, int kSums>
__global__ void __launch_bounds__(kColumnThreads,
                                  kAccess == Access::kVector && kSums == 1 ? kColumnBlocksPerProcessor : 2)
    backward_columns_kernel(const __grid_constant__ typename Routing<Format, kAccess, kSums>::Parameters p) {
  BackwardColumns<Format, kAccess, kSums>{{p}}.run();
}

}  // namespace dreluop::cuda
