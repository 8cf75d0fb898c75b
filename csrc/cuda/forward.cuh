// y = max(0, min((x + bias) + residual, cap)), with what else forward may leave: the packed mask, the penalty.
// Here for tensors that lie densely, in whole aligned vectors but for a few elements; forward_general.cuh has the rest.
#pragma once

#include "cuda/caps.cuh"
#include "cuda/pair_arithmetic.cuh"
#include "cuda/penalty.cuh"

namespace dreluop::cuda {

template <Access kAccess>
struct ForwardParameters {
  Operands<kAccess> operands;  // x, y, residual
  FlatPlan plan;
  CapMap map;
  CapSource<kAccess> cap, bias;
  bool has_residual;
  Zeroed zeroed;
  uint8_t* mask;
  Penalty penalty;
};

// kFused: a bias or a residual is added first.
template <class DTypeTraits, Access kAccess, CapMode kMode, bool kFusesBiasOrResidual>
struct ForwardTraits : KernelTraits<DTypeTraits, kAccess, kMode> {
  static constexpr bool kFused = kFusesBiasOrResidual;
  static constexpr int kVecs = kFused ? kInFlightOfTwo : kInFlight;  // of a thread
  using Parameters = ForwardParameters<kAccess>;
};

template <class Traits>
struct ForwardPass {
  using T = typename Traits::T;
  using Vec = typename Traits::Vec;
  using Values = typename Traits::Values;
  using Caps = CapsOfVec<Traits>;
  static constexpr int kVec = Traits::kVec, kVecs = Traits::kVecs;
  enum { kX, kY, kResidual };

  const typename Traits::Parameters& p;

  // What one thread does. It asks for all its vectors before it uses the first, as memory takes long to answer; they
  // lie kFlatThreads apart, so that its neighbors ask for the rest of the same lines.
  DRELUOP_DEVICE void run() const {
    const int64_t block = static_cast<int64_t>(blockIdx.x) - p.penalty.blocks;
    if (block < 0) return p.penalty.run(blockIdx.x);
    const int64_t first = block * (kFlatThreads * p.plan.per_thread) + threadIdx.x;
    Vec x[kVecs], residual[kVecs];
#pragma unroll
    for (int u = 0; u < kVecs; ++u) {
      const int64_t g = first + u * kFlatThreads;
      if (u >= p.plan.per_thread || g >= p.plan.vecs) continue;
      const int64_t i = p.plan.head + g * kVec;
      x[u] = p.operands.template load<Traits>(kX, i, kVec);
      if constexpr (Traits::kFused)
        if (p.has_residual) residual[u] = p.operands.template load<Traits>(kResidual, i, kVec);
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
    if (block == p.plan.blocks - 1) edges();
  }

  // The first n elements of a vector.
  DRELUOP_DEVICE void compute(int64_t i, int n, const Vec& x, const Vec& residual, const Caps& caps,
                              const Values& cap) const {
    Values t = unpack<Traits>(x);
    if constexpr (Traits::kFused) fuse(caps, unpack<Traits>(residual), &t);
    const Values y = capped_values<Traits>(t, cap, p.zeroed);
    p.operands.template store<Traits>(kY, i, n, y);
    if (p.mask == nullptr) return;
    write_mask<Traits>(p.mask, i, n, packed_regions_of<Traits>(y, region_caps<Traits>(cap, p.zeroed)));
  }

  DRELUOP_DEVICE void fuse(const Caps& caps, const Values& residual, Values* x) const {
    typename Traits::Real sum[kVec];
#pragma unroll
    for (int e = 0; e < kVec; ++e) sum[e] = Traits::upcast(x->v[e]);
    if (p.bias.data != nullptr) {
      typename Traits::Real bias[kVec];
      caps.read(p.bias, bias);
#pragma unroll
      for (int e = 0; e < kVec; ++e) sum[e] += bias[e];
    }
    if (p.has_residual) {
#pragma unroll
      for (int e = 0; e < kVec; ++e) sum[e] += Traits::upcast(residual.v[e]);
    }
#pragma unroll
    for (int e = 0; e < kVec; ++e) x->v[e] = Traits::round(sum[e]);
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
    using Number = typename Traits::Number;
    const int64_t c = Caps(p.map, i).first;
    T x = p.operands.template at<Traits>(kX, i);
    if constexpr (Traits::kFused) {
      typename Traits::Real sum = Traits::upcast(x);
      if (p.bias.data != nullptr) sum += p.bias.template number<Traits>(c);
      if (p.has_residual) sum += Traits::upcast(p.operands.template at<Traits>(kResidual, i));
      x = Traits::round(sum);
    }
    const T cap = Traits::round(p.cap.template number<Traits>(c));
    const T y = capped_value<Number>(x, cap, p.zeroed);
    p.operands.template at<Traits>(kY, i) = y;
    return region_of<Number>(y, region_cap<Number>(cap, p.zeroed));
  }
};

template <class Traits>
__global__ void __launch_bounds__(kFlatThreads, Traits::kFused ? 3 : 4)
    forward_kernel(const __grid_constant__ typename Traits::Parameters p) {
  ForwardPass<Traits>{p}.run();
}

}  // namespace dreluop::cuda
