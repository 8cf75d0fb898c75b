// Where the gradient of one vector goes: to x, to the cap, to the bias.
#pragma once

#include "cuda/last_block_reduction.cuh"
#include "cuda/pair_arithmetic.cuh"
#include "cuda/saved.cuh"
#include "dreluop/cuda_backward_plan.h"

namespace dreluop::cuda {

// Which run of a cap a vector or a segment lies in.
struct RunIndex {
  FastDivmod by;
  bool is_short;  // fewer than 2^31 of them

  DRELUOP_DEVICE int64_t quotient_of(int64_t k) const {
    return is_short ? by.short_quotient(static_cast<uint32_t>(k)) : by.quotient(static_cast<uint64_t>(k));
  }
};

template <Access kAccess, class Real>
struct BackwardParameters {
  SavedReader<kAccess> saved;  // grad, y, dx
  bool wants_x;
  int64_t numel;
  CapLayout layout;
  CapMap map;
  CapSource<kAccess> cap;  // data is null where not needed
  LastBlockReduction<Real> finish;
  RowPlan rows;
  RunIndex runs;  // of a vector (packed), or of a segment
  int head;
  ColumnPlan columns;
};

// kSums: of the cap, or of cap and bias. kPacked: by rows that are whole vectors.
template <class DTypeTraits, Access kAccess, int kSumsPerCap, bool kPackedRows = false>
struct BackwardTraits : KernelTraits<DTypeTraits, kAccess> {
  using Base = KernelTraits<DTypeTraits, kAccess>;
  // In double where speed is not the point: what is irregular in memory, and caps of fp64 beside a narrower x.
  using SumType = std::conditional_t<kAccess == Access::kGeneral, double, typename Base::Real>;
  static constexpr int kSums = kSumsPerCap;
  static constexpr bool kPacked = kPackedRows;
  static constexpr int kVecs = kAccess == Access::kGeneral ? 1 : kInFlightOfTwo;  // of a batch
  using Parameters = BackwardParameters<kAccess, SumType>;
};

template <class Traits>
struct Routing {
  using T = typename Traits::T;
  using Vec = typename Traits::Vec;
  using Values = typename Traits::Values;
  using Real = typename Traits::SumType;
  static constexpr int kVec = Traits::kVec, kVecs = Traits::kVecs, kSums = Traits::kSums;
  enum { kGrad, kY, kDx };

  const typename Traits::Parameters& p;

  DRELUOP_DEVICE static Real upcast(T a) { return static_cast<Real>(Traits::upcast(a)); }

  // Rounded to x's dtype, as it was compared with; NaN where nothing is capped.
  DRELUOP_DEVICE T cap_of(int64_t c) const {
    if (p.cap.data == nullptr) return Traits::Number::nan();
    return Traits::round(p.cap.template number<Traits>(c));
  }

  DRELUOP_DEVICE Vec load_grad(int64_t i, int n) const { return p.saved.operands.template load<Traits>(kGrad, i, n); }

  // Writes dx and gives the terms of the sums, per element: to_cap[e], and to_bias[e] if there are two sums.
  template <class SavedInfo>
  DRELUOP_DEVICE void route(int64_t i, int n, bool valid, const Vec& vec, const SavedInfo& info, const Values& cap,
                            Real* to_cap, Real* to_bias) const {
    const auto where = info.where(cap);
    // NaN beats capped: the two exclude each other in a mask, and in the rule.
    const auto dx = only<Traits>(where.inside, vec), at_cap = only<Traits>(where.capped, vec);
    upcast_to(at_cap, to_cap);
    if constexpr (kSums == 2) upcast_to(dx, to_bias);
    if (valid && p.wants_x) p.saved.operands.template store<Traits>(kDx, i, n, unpack<Traits>(dx));
  }

  DRELUOP_DEVICE static void upcast_to(const Vec& vec, Real* to) {
    const auto wide = upcasted<Traits>(vec);
#pragma unroll
    for (int e = 0; e < kVec; ++e) to[e] = static_cast<Real>(wide.v[e]);
  }

  // Calls f with what tells the regions of a vector.
  template <class F>
  DRELUOP_DEVICE void with_saved(const F& f) const {
    if constexpr (Traits::kAccess == Access::kGeneral)
      f(SavedVec<Traits, Saved::kEither>::nothing());
    else if (p.saved.mask != nullptr)
      f(SavedVec<Traits, Saved::kMask>::nothing());
    else
      f(SavedVec<Traits, Saved::kOutput>::nothing());
  }

  // The same for one element.
  DRELUOP_DEVICE void route_one(int64_t i, T cap, Sum<Real>* sums) const {
    const T g = p.saved.operands.template at<Traits>(kGrad, i);
    const uint8_t region = p.saved.template region<Traits>(i, cap);
    if (region == kCapped) sums[kCapSum].add(upcast(g));
    if constexpr (kSums == 2)
      if (region == kInside) sums[kBiasSum].add(upcast(g));
    if (p.wants_x) p.saved.operands.template at<Traits>(kDx, i) = region == kInside ? g : Traits::Number::zero();
  }
};

}  // namespace dreluop::cuda
