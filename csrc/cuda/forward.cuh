// y = max(0, min((x + bias) + residual, cap)), with what else forward may leave: the packed mask, the penalty.
#pragma once

#include "cuda/access.cuh"
#include "cuda/cap_penalty.cuh"
#include "cuda/caps.cuh"
#include "cuda/pair_arithmetic.cuh"

namespace dreluop::cuda {

template <Access kAccess>
struct ForwardParameters {
  Operands<kAccess> operands;  // x, y, residual
  FlatPlan plan;
  CapMap map;
  CapSource<kAccess> cap, bias;
  bool has_residual;
  uint8_t* mask;
  Penalty penalty;
};

template <class Traits, Access kAccess, CapMode kMode, bool kFused>
struct ForwardPass {
  using T = typename Traits::Storage;
  using Real = typename Working<Traits>::Real;
  static constexpr int kVec = sizeof(T) == 2 ? 8 : 4;
  static constexpr int kVecs = kFused ? kInFlightOfTwo : kInFlight;
  using Caps = CapsOfVec<Traits, kVec, kAccess, kMode>;
  using Values = Pack<T, kVec>;
  enum { kX, kY, kResidual };

  const ForwardParameters<kAccess>& p;

  // The first n elements of a vector.
  DRELUOP_DEVICE void compute(int64_t i, int n, const Vec<T, kVec>& x, const Vec<T, kVec>& residual, const Caps& caps,
                              const Values& cap) const {
    Values t = unpack<T, kVec>(x);
    if constexpr (kFused) fuse(caps, unpack<T, kVec>(residual), &t);
    const Values y = capped_values<Traits, kVec>(t, cap);
    p.operands.template store<T, kVec>(kY, i, n, y);
    if (p.mask != nullptr) write_mask<kVec>(p.mask, i, n, packed_regions_of<Traits, kVec>(y, cap));
  }

  DRELUOP_DEVICE void fuse(const Caps& caps, const Values& residual, Values* x) const {
    Real sum[kVec];
#pragma unroll
    for (int e = 0; e < kVec; ++e) sum[e] = Working<Traits>::upcast(x->v[e]);
    if (p.bias.data != nullptr) {
      Real bias[kVec];
      caps.read(p.bias, bias);
#pragma unroll
      for (int e = 0; e < kVec; ++e) sum[e] += bias[e];
    }
    if (p.has_residual) {
#pragma unroll
      for (int e = 0; e < kVec; ++e) sum[e] += Working<Traits>::upcast(residual.v[e]);
    }
#pragma unroll
    for (int e = 0; e < kVec; ++e) x->v[e] = Working<Traits>::round(sum[e]);
  }

  // Elements before the first vector and after the last, four to a thread: a byte of mask has one writer.
  DRELUOP_DEVICE void edges() const {
    const int before = (static_cast<int>(p.plan.head) + kElementsPerByte - 1) / kElementsPerByte;
    const int quad = static_cast<int>(threadIdx.x);
    const bool in_head = quad < before;
    const int64_t begin = (in_head ? 0 : p.plan.head + p.plan.vecs * kVec - int64_t{kElementsPerByte} * before) +
                          int64_t{kElementsPerByte} * quad;
    const int64_t end = in_head ? p.plan.head : p.plan.numel;
    uint8_t region_bits = 0;
#pragma unroll 1
    for (int e = 0; e < kElementsPerByte && begin + e < end; ++e) region_bits |= element(begin + e) << (2 * e);
    if (begin < end && p.mask != nullptr) p.mask[begin / kElementsPerByte] = region_bits;
  }

  DRELUOP_DEVICE uint8_t element(int64_t i) const {
    const int64_t c = Caps(p.map, i).first;
    T x = p.operands.template at<T>(kX, i);
    if constexpr (kFused) {
      Real sum = Working<Traits>::upcast(x);
      if (p.bias.data != nullptr) sum += p.bias.template number<Traits>(c);
      if (p.has_residual) sum += Working<Traits>::upcast(p.operands.template at<T>(kResidual, i));
      x = Working<Traits>::round(sum);
    }
    const T cap = Working<Traits>::round(p.cap.template number<Traits>(c));
    const T y = capped_value<Traits>(x, cap);
    p.operands.template at<T>(kY, i) = y;
    return region_of<Traits>(y, cap);
  }

  // All loads first.
  DRELUOP_DEVICE void together(int64_t first) const {
    Vec<T, kVec> x[kVecs], residual[kVecs];
#pragma unroll
    for (int u = 0; u < kVecs; ++u) {
      const int64_t g = first + u * kFlatThreads;
      if (u >= p.plan.per_thread || g >= p.plan.vecs) continue;
      const int64_t i = p.plan.head + g * kVec;
      x[u] = p.operands.template load<T, kVec>(kX, i, kVec);
      if constexpr (kFused)
        if (p.has_residual) residual[u] = p.operands.template load<T, kVec>(kResidual, i, kVec);
    }
#pragma unroll
    for (int u = 0; u < kVecs; ++u) {
      const int64_t g = first + u * kFlatThreads;
      if (u >= p.plan.per_thread || g >= p.plan.vecs) continue;
      const int64_t i = p.plan.head + g * kVec;
      const Caps caps(p.map, i);
      Values cap;
      caps.read_as(p.cap, cap.v);
      compute(i, kVec, x[u], residual[u], caps, cap);
    }
  }

  DRELUOP_DEVICE void one_by_one(int64_t first) const {
#pragma unroll 1
    for (int u = 0; u < p.plan.per_thread; ++u) {
      const int64_t i = (first + u * kFlatThreads) * kVec;
      if (i >= p.plan.numel) return;
      const int n = static_cast<int>(min(p.plan.numel - i, int64_t{kVec}));
      Vec<T, kVec> residual = {};
      if (p.has_residual) residual = p.operands.template load<T, kVec>(kResidual, i, n);
      const Caps caps(p.map, i);
      Values cap;
      caps.read_as(p.cap, cap.v);
      compute(i, n, p.operands.template load<T, kVec>(kX, i, n), residual, caps, cap);
    }
  }

  DRELUOP_DEVICE void run() const {
    const int64_t block = static_cast<int64_t>(blockIdx.x) - p.penalty.blocks;
    if (block < 0) return p.penalty.run(blockIdx.x);
    const int64_t first = block * (kFlatThreads * p.plan.per_thread) + threadIdx.x;
    if constexpr (kAccess == Access::kGeneral) {
      one_by_one(first);
    } else {
      together(first);
      if (block == p.plan.blocks - 1) edges();
    }
  }
};

template <class Traits, Access kAccess, CapMode kMode, bool kFused>
__global__ void __launch_bounds__(kFlatThreads, kFused ? 3 : 4)
    forward_kernel(const __grid_constant__ ForwardParameters<kAccess> p) {
  ForwardPass<Traits, kAccess, kMode, kFused>{p}.run();
}

}  // namespace dreluop::cuda
