// The gradients of attacks: straight through the cap, or smoothed.
#include "cuda/arguments.h"
#include "dreluop/surrogate.h"

namespace dreluop::cuda {

struct SurrogateParameters {
  Operands<Access::kGeneral> operands;  // grad, y (or x before the cap), dx
  const uint8_t* mask;
  FlatPlan plan;
  CapMap map;
  CapSource<Access::kGeneral> cap, width;  // data is null in the straight-through form
};

template <class Traits>
struct SurrogatePass {
  using Number = typename Traits::Number;
  using Values = typename Traits::Values;
  static constexpr int kVec = Traits::kVec;
  enum { kGrad, kY, kDx };

  const SurrogateParameters& p;

  // The first n elements of a vector.
  DRELUOP_DEVICE void compute(int64_t i, int n) const {
    const Values g = unpack<Traits>(p.operands.load<Traits>(kGrad, i, n));
    Values dx;
    if (p.width.data != nullptr)
      soften(i, n, g, &dx);
    else
      pass(i, n, g, &dx);
    p.operands.store<Traits>(kDx, i, n, dx);
  }

  DRELUOP_DEVICE void pass(int64_t i, int n, const Values& g, Values* dx) const {
    if (p.mask != nullptr) {
#pragma unroll
      for (int e = 0; e < kVec; ++e) {
        const int64_t at = e < n ? i + e : i;
        const bool on = region_in_byte(p.mask[at / kElementsPerByte], static_cast<int>(at % kElementsPerByte)) != kOff;
        dx->v[e] = select(on, g.v[e], Number::zero());
      }
    } else {
      const Values y = unpack<Traits>(p.operands.load<Traits>(kY, i, n));
#pragma unroll
      for (int e = 0; e < kVec; ++e) dx->v[e] = select(passes<Number>(y.v[e]), g.v[e], Number::zero());
    }
  }

  DRELUOP_DEVICE void soften(int64_t i, int n, const Values& g, Values* dx) const {
    const Values x = unpack<Traits>(p.operands.load<Traits>(kY, i, n));
    const CapsOfVec<Traits> caps(p.map, i);
    typename Traits::T cap[kVec];
    typename Traits::Real width[kVec];
    caps.read_as(p.cap, cap);
    caps.read(p.width, width);
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      const auto m = Traits::upcast(cap[e]);
      dx->v[e] = Traits::round(softened(Traits::upcast(g.v[e]), Traits::upcast(x.v[e]), m, width[e]));
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(kFlatThreads) surrogate_kernel(const __grid_constant__ SurrogateParameters p) {
  for_each_vec<Traits>(blockIdx.x, kInFlightOfTwo, p.plan.numel,
                       [&](int64_t i, int n) { SurrogatePass<Traits>{p}.compute(i, n); });
}

Status surrogate(const Problem& problem, const Surrogate& pass) {
  check(problem);
  const int64_t numel = problem.numel();
  const bool soft = pass.width.data != nullptr;
  if (numel > 0 && (pass.grad.data == nullptr || pass.dx.data == nullptr)) refuse("grad, dx: missing");
  if (numel > 0 && pass.y.data == nullptr && pass.mask == nullptr) refuse("saved: missing, and there is no mask");
  if (soft && pass.mask != nullptr) refuse("mask: the soft form needs x");
  if (numel > 0 && soft && pass.cap.data == nullptr) refuse("cap: missing");
  SurrogateParameters p{};
  OperandSet(problem, {pass.grad, pass.y, pass.dx}).fill(&p.operands);
  p.mask = pass.mask;
  p.plan = flat_plan(problem.dtype, numel, 0, kInFlightOfTwo);
  p.map = cap_map(merged(problem.layout));
  CapReading(problem, pass.cap).fill(&p.cap);
  CapReading(problem, pass.width).fill(&p.width);
  return with_dtype_traits(problem.dtype, [&](auto traits) {
    return launch("dreluop surrogate", surrogate_kernel<GeneralTraits<decltype(traits)>>, p.plan.blocks, kFlatThreads,
                  kScratchOfBlock, problem.stream, p);
  });
}

}  // namespace dreluop::cuda
