// Where the gradient of one vector goes: to x, to the cap, to the bias.
#pragma once

#include "cuda/last_block_reduction.cuh"
#include "cuda/pair_arithmetic.cuh"
#include "cuda/saved.cuh"

namespace dreluop::cuda {

// Sums are in double where speed is not the point: what is irregular in memory, and caps of fp64 beside a narrower x.
template <class Traits, Access kAccess>
struct SumType {
  using Real = double;
};
template <class Traits>
struct SumType<Traits, Access::kVector> {
  using Real = typename Working<Traits>::Real;
};

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

template <class Traits, Access kAccess, int kSums>
struct Routing {
  using T = typename Traits::Storage;
  using Real = typename SumType<Traits, kAccess>::Real;
  using Wide = typename Working<Traits>::Real;
  static constexpr int kVec = sizeof(T) == 2 ? 8 : 4;
  static constexpr int kVecs = kAccess == Access::kGeneral ? 1 : kInFlightOfTwo;  // of a batch
  using Parameters = BackwardParameters<kAccess, Real>;
  enum { kGrad, kY, kDx };

  const Parameters& p;

  DRELUOP_DEVICE static Real upcast(T a) { return static_cast<Real>(Working<Traits>::upcast(a)); }

  // Rounded to x's dtype, as it was compared with.
  DRELUOP_DEVICE T cap_of(int64_t c) const {
    if (p.cap.data == nullptr) return Traits::zero();
    return Working<Traits>::round(p.cap.template number<Traits>(c));
  }

  DRELUOP_DEVICE Vec<T, kVec> load_grad(int64_t i, int n) const {
    return p.saved.operands.template load<T, kVec>(kGrad, i, n);
  }

  // Writes dx and gives the terms of the sums, per element: to_cap[e], and to_bias[e] if there are two sums.
  template <class SavedInfo>
  DRELUOP_DEVICE void route(int64_t i, int n, bool valid, const Vec<T, kVec>& vec, const SavedInfo& info,
                            const Pack<T, kVec>& cap, Real* to_cap, Real* to_bias) const {
    const auto where = info.where(cap);
    // NaN beats capped: the two exclude each other in a mask, and in the rule.
    const auto dx = only<T, kVec>(where.inside, vec), at_cap = only<T, kVec>(where.capped, vec);
    upcast_to(at_cap, to_cap);
    if constexpr (kSums == 2) upcast_to(dx, to_bias);
    if (valid && p.wants_x) p.saved.operands.template store<T, kVec>(kDx, i, n, unpack<T, kVec>(dx));
  }

  DRELUOP_DEVICE static void upcast_to(const Vec<T, kVec>& vec, Real* to) {
    const Pack<Wide, kVec> wide = upcasted<Traits, kVec>(vec);
#pragma unroll
    for (int e = 0; e < kVec; ++e) to[e] = static_cast<Real>(wide.v[e]);
  }

  // Calls f with what tells the regions of a vector.
  template <class F>
  DRELUOP_DEVICE void with_saved(const F& f) const {
    if constexpr (kAccess == Access::kGeneral)
      f(SavedVec<Traits, kVec, Saved::kEither>::nothing());
    else if (p.saved.mask != nullptr)
      f(SavedVec<Traits, kVec, Saved::kMask>::nothing());
    else
      f(SavedVec<Traits, kVec, Saved::kOutput>::nothing());
  }

  // The same for one element.
  DRELUOP_DEVICE void route_one(int64_t i, T cap, Sum<Real>* sums) const {
    const T g = p.saved.operands.template at<T>(kGrad, i);
    const uint8_t region = p.saved.template region<Traits>(i, cap);
    if (region == kCapped) sums[kCapSum].add(upcast(g));
    if constexpr (kSums == 2)
      if (region == kInside) sums[kBiasSum].add(upcast(g));
    if (p.wants_x) p.saved.operands.template at<T>(kDx, i) = region == kInside ? g : Traits::zero();
  }
};

}  // namespace dreluop::cuda
