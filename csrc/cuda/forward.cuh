// y = max(0, min((x + bias) + residual, cap)), with what else forward may leave: a code, the penalty.
#pragma once

#include "cuda/access.cuh"
#include "cuda/caps.cuh"
#include "cuda/packed.cuh"
#include "cuda/squares.cuh"

namespace dreluop::cuda {

template <Access kAccess>
struct ForwardParameters {
  Operands<kAccess> operands;  // x, y, residual
  FlatPlan plan;
  CapMap map;
  CapSource<kAccess> cap, bias;
  bool has_residual;
  uint8_t* code;
  Penalty penalty;
};

template <class Format, Access kAccess, CapMode kMode, bool kFused>
struct ForwardPass {
  using T = typename Format::Storage;
  using Real = typename Working<Format>::Real;
  static constexpr int kGroup = sizeof(T) == 2 ? 8 : 4;
  static constexpr int kGroups = kFused ? kInFlightOfTwo : kInFlight;
  using Caps = CapsOfGroup<Format, kGroup, kAccess, kMode>;
  using Values = Pack<T, kGroup>;
  enum { kX, kY, kResidual };

  const ForwardParameters<kAccess>& p;

  // The first n elements of a group.
  DRELUOP_DEVICE void compute(int64_t i, int n, const Group<T, kGroup>& x, const Group<T, kGroup>& residual,
                              const Caps& caps, const Values& cap) const {
    Values t = unpack<T, kGroup>(x);
    if constexpr (kFused) fuse(caps, unpack<T, kGroup>(residual), &t);
    const Values y = capped_values<Format, kGroup>(t, cap);
    p.operands.template store<T, kGroup>(kY, i, n, y);
    if (p.code != nullptr) write_codes<kGroup>(p.code, i, n, codes_of<Format, kGroup>(y, cap));
  }

  DRELUOP_DEVICE void fuse(const Caps& caps, const Values& residual, Values* x) const {
    Real sum[kGroup];
#pragma unroll
    for (int e = 0; e < kGroup; ++e) sum[e] = Working<Format>::widen(x->v[e]);
    if (p.bias.data != nullptr) {
      Real bias[kGroup];
      caps.read(p.bias, bias);
#pragma unroll
      for (int e = 0; e < kGroup; ++e) sum[e] += bias[e];
    }
    if (p.has_residual) {
#pragma unroll
      for (int e = 0; e < kGroup; ++e) sum[e] += Working<Format>::widen(residual.v[e]);
    }
#pragma unroll
    for (int e = 0; e < kGroup; ++e) x->v[e] = Working<Format>::round(sum[e]);
  }

  // Elements before the first group and after the last, four to a thread: a byte of code has one writer.
  DRELUOP_DEVICE void edges() const {
    const int before = (static_cast<int>(p.plan.head) + kCodesPerByte - 1) / kCodesPerByte;
    const int quad = static_cast<int>(threadIdx.x);
    const bool in_head = quad < before;
    const int64_t begin = (in_head ? 0 : p.plan.head + p.plan.groups * kGroup - int64_t{kCodesPerByte} * before) +
                          int64_t{kCodesPerByte} * quad;
    const int64_t end = in_head ? p.plan.head : p.plan.numel;
    uint8_t codes = 0;
#pragma unroll 1
    for (int e = 0; e < kCodesPerByte && begin + e < end; ++e) codes |= element(begin + e) << (2 * e);
    if (begin < end && p.code != nullptr) p.code[begin / kCodesPerByte] = codes;
  }

  DRELUOP_DEVICE uint8_t element(int64_t i) const {
    const int64_t c = Caps(p.map, i).first;
    T x = p.operands.template at<T>(kX, i);
    if constexpr (kFused) {
      Real sum = Working<Format>::widen(x);
      if (p.bias.data != nullptr) sum += p.bias.template number<Format>(c);
      if (p.has_residual) sum += Working<Format>::widen(p.operands.template at<T>(kResidual, i));
      x = Working<Format>::round(sum);
    }
    const T cap = Working<Format>::round(p.cap.template number<Format>(c));
    const T y = capped_value<Format>(x, cap);
    p.operands.template at<T>(kY, i) = y;
    return region_of<Format>(y, cap);
  }

  // All loads first.
  DRELUOP_DEVICE void together(int64_t first) const {
    Group<T, kGroup> x[kGroups], residual[kGroups];
#pragma unroll
    for (int u = 0; u < kGroups; ++u) {
      const int64_t g = first + u * kFlatThreads;
      if (u >= p.plan.per_thread || g >= p.plan.groups) continue;
      const int64_t i = p.plan.head + g * kGroup;
      x[u] = p.operands.template load<T, kGroup>(kX, i, kGroup);
      if constexpr (kFused)
        if (p.has_residual) residual[u] = p.operands.template load<T, kGroup>(kResidual, i, kGroup);
    }
#pragma unroll
    for (int u = 0; u < kGroups; ++u) {
      const int64_t g = first + u * kFlatThreads;
      if (u >= p.plan.per_thread || g >= p.plan.groups) continue;
      const int64_t i = p.plan.head + g * kGroup;
      const Caps caps(p.map, i);
      Values cap;
      caps.read_as(p.cap, cap.v);
      compute(i, kGroup, x[u], residual[u], caps, cap);
    }
  }

  DRELUOP_DEVICE void one_by_one(int64_t first) const {
#pragma unroll 1
    for (int u = 0; u < p.plan.per_thread; ++u) {
      const int64_t i = (first + u * kFlatThreads) * kGroup;
      if (i >= p.plan.numel) return;
      const int n = static_cast<int>(min(p.plan.numel - i, int64_t{kGroup}));
      Group<T, kGroup> residual = {};
      if (p.has_residual) residual = p.operands.template load<T, kGroup>(kResidual, i, n);
      const Caps caps(p.map, i);
      Values cap;
      caps.read_as(p.cap, cap.v);
      compute(i, n, p.operands.template load<T, kGroup>(kX, i, n), residual, caps, cap);
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

template <class Format, Access kAccess, CapMode kMode, bool kFused>
__global__ void __launch_bounds__(kFlatThreads, kFused ? 3 : 4)
    forward_kernel(const __grid_constant__ ForwardParameters<kAccess> p) {
  ForwardPass<Format, kAccess, kMode, kFused>{p}.run();
}

}  // namespace dreluop::cuda
