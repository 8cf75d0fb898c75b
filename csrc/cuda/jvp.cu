// u where inside, v of the cap where capped, else 0: forward mode and double backward.
#include "cuda/arguments.h"
#include "cuda/saved.cuh"

namespace dreluop::cuda {

struct JvpParameters {
  SavedReader<Access::kGeneral> saved;  // u, y, out
  FlatPlan plan;
  CapMap map;
  CapSource<Access::kGeneral> cap, v;  // data is null where not needed
};

template <class Traits>
DRELUOP_DEVICE void read_or(const CapsOfVec<Traits>& caps, const CapSource<Access::kGeneral>& source,
                            typename Traits::T absent, typename Traits::Values* to) {
#pragma unroll
  for (int e = 0; e < Traits::kVec; ++e) to->v[e] = absent;
  if (source.data != nullptr) caps.read_as(source, to->v);
}

template <class Traits>
__global__ void __launch_bounds__(kFlatThreads) jvp_kernel(const __grid_constant__ JvpParameters p) {
  enum { kU, kY, kOut };
  for_each_vec<Traits>(blockIdx.x, kInFlightOfTwo, p.plan.numel, [&](int64_t i, int n) {
    const auto u = p.saved.operands.load<Traits>(kU, i, n);
    const CapsOfVec<Traits> caps(p.map, i);
    typename Traits::Values cap, v;
    read_or(caps, p.cap, Traits::Number::nan(), &cap);
    read_or(caps, p.v, Traits::Number::zero(), &v);
    const auto where = SavedVec<Traits, Saved::kEither>::load(p.saved, i, n, cap).where(cap);
    const auto at_cap = only<Traits>(where.capped, bit_cast<typename Traits::Vec>(v));
    p.saved.operands.store<Traits>(kOut, i, n, unpack<Traits>(chosen<Traits>(where.inside, u, at_cap)));
  });
}

Status jvp(const Problem& problem, const Jvp& pass) {
  check(problem);
  const int64_t numel = problem.numel();
  if (numel > 0 && (pass.u.data == nullptr || pass.out.data == nullptr)) refuse("u, out: missing");
  check_saved(problem, pass.y, pass.mask, pass.cap);
  JvpParameters p{};
  OperandSet(problem, {pass.u, pass.y, pass.out}).fill(&p.saved.operands);
  p.saved.mask = pass.mask;
  p.plan = flat_plan(problem.dtype, numel, 0, kInFlightOfTwo);
  p.map = cap_map(merged(problem.layout));
  CapReading(problem, region_caps(pass.cap, pass.zeroed)).fill(&p.cap);
  CapReading(problem, pass.v).fill(&p.v);
  return with_dtype_traits(problem.dtype, [&](auto traits) {
    return launch("dreluop jvp", jvp_kernel<GeneralTraits<decltype(traits)>>, p.plan.blocks, kFlatThreads,
                  kScratchOfBlock, problem.stream, p);
  });
}

}  // namespace dreluop::cuda
