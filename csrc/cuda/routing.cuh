// Where the gradient of one group goes: to x, to the cap, to the bias.
#pragma once

#include "cuda/finish.cuh"
#include "cuda/packed.cuh"
#include "cuda/saved.cuh"

namespace dreluop::cuda {

// Sums are in double where speed is not the point: what is irregular in memory, and caps of fp64 beside a narrower x.
template <class Format, Access kAccess>
struct SumType {
  using Real = double;
};
template <class Format>
struct SumType<Format, Access::kVector> {
  using Real = typename Working<Format>::Real;
};

// Which run of a cap a group or a piece lies in.
struct RunIndex {
  Divider by;
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
  Finish<Real> finish;
  RowPlan rows;
  RunIndex runs;  // of a group (packed), or of a piece
  int head;
  ColumnPlan columns;
};

template <class Format, Access kAccess, int kSums>
struct Routing {
  using T = typename Format::Storage;
  using Real = typename SumType<Format, kAccess>::Real;
  using Wide = typename Working<Format>::Real;
  static constexpr int kGroup = sizeof(T) == 2 ? 8 : 4;
  static constexpr int kGroups = kAccess == Access::kGeneral ? 1 : kInFlightOfTwo;  // of a batch
  using Parameters = BackwardParameters<kAccess, Real>;
  enum { kGrad, kY, kDx };

  const Parameters& p;

  DRELUOP_DEVICE static Real widen(T a) { return static_cast<Real>(Working<Format>::widen(a)); }

  // Rounded to x's dtype, as it was compared with.
  DRELUOP_DEVICE T cap_of(int64_t c) const {
    if (p.cap.data == nullptr) return Format::zero();
    return Working<Format>::round(p.cap.template number<Format>(c));
  }

  DRELUOP_DEVICE Group<T, kGroup> load_grad(int64_t i, int n) const {
    return p.saved.operands.template load<T, kGroup>(kGrad, i, n);
  }

  // Writes dx and gives the terms of the sums, per element: to_cap[e], and to_bias[e] if there are two sums.
  template <class Kept>
  DRELUOP_DEVICE void route(int64_t i, int n, bool valid, const Group<T, kGroup>& group, const Kept& kept,
                            const Pack<T, kGroup>& cap, Real* to_cap, Real* to_bias) const {
    const auto where = kept.where(cap);
    // NaN beats capped: the two exclude each other in a code, and in the rule.
    const auto dx = only<T, kGroup>(where.inside, group), at_cap = only<T, kGroup>(where.capped, group);
    widen_to(at_cap, to_cap);
    if constexpr (kSums == 2) widen_to(dx, to_bias);
    if (valid && p.wants_x) p.saved.operands.template store<T, kGroup>(kDx, i, n, unpack<T, kGroup>(dx));
  }

  DRELUOP_DEVICE static void widen_to(const Group<T, kGroup>& group, Real* to) {
    const Pack<Wide, kGroup> wide = widened<Format, kGroup>(group);
#pragma unroll
    for (int e = 0; e < kGroup; ++e) to[e] = static_cast<Real>(wide.v[e]);
  }

  // Calls f with what tells the regions of a group.
  template <class F>
  DRELUOP_DEVICE void with_saved(const F& f) const {
    if constexpr (kAccess == Access::kGeneral)
      f(SavedGroup<Format, kGroup, Saved::kEither>::nothing());
    else if (p.saved.code != nullptr)
      f(SavedGroup<Format, kGroup, Saved::kCode>::nothing());
    else
      f(SavedGroup<Format, kGroup, Saved::kOutput>::nothing());
  }

  // The same for one element.
  DRELUOP_DEVICE void route_one(int64_t i, T cap, Sum<Real>* sums) const {
    const T g = p.saved.operands.template at<T>(kGrad, i);
    const uint8_t region = p.saved.template region<Format>(i, cap);
    if (region == kCapped) sums[kCapSum].add(widen(g));
    if constexpr (kSums == 2)
      if (region == kInside) sums[kBiasSum].add(widen(g));
    if (p.wants_x) p.saved.operands.template at<T>(kDx, i) = region == kInside ? g : Format::zero();
  }
};

}  // namespace dreluop::cuda
