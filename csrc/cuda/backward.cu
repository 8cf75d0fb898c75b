#include "cuda/arguments.h"
#include "cuda/backward_columns.cuh"
#include "cuda/backward_rows.cuh"

namespace dreluop::cuda {
namespace {

// What both the workspace and the launch follow from.
struct Choice {
  Choice(const Problem& problem, const Backward& pass)
      : operands(problem, {pass.grad, pass.y, pass.dx}), cap(problem, region_caps(pass.cap, pass.zeroed)) {
    const CapLayout layout = merged(problem.layout);
    const int64_t multiprocessors = std::max(1, problem.multiprocessors);
    const bool wide = wants_double(pass.dcap) || wants_double(pass.dbias),
               by_rows = goes_by_rows(problem.dtype, layout);
    const auto bytes_of_mask = static_cast<uintptr_t>(vec_of(problem.dtype) / kElementsPerByte);
    const bool whole_masks = reinterpret_cast<uintptr_t>(pass.mask) % bytes_of_mask == 0;
    vector = problem.dtype != DType::kFloat64 && !wide && operands.vector() && cap.simple(problem.dtype) &&
             whole_masks && (operands.head() == 0 || (by_rows && pass.mask == nullptr));
    // The fast way by rows: a single cap, or runs of whole vectors.
    const bool packed =
        vector && by_rows && (layout.caps == 1 || (operands.head() == 0 && layout.inner % vec_of(problem.dtype) == 0));
    plan = backward_plan(problem.dtype, layout, multiprocessors, packed, operands.head());
    vector = vector && (by_rows || plan.columns.aligned);
    sum_bytes = vector ? sizeof(Partial<float>) : sizeof(Partial<double>);
    channels = problem.shared_cap && pass.dcap.data != nullptr ? problem.layout.caps : 0;
    const bool wants_sums = pass.dcap.data != nullptr || pass.dbias.data != nullptr;
    counters = wants_sums ? plan.counters + (channels > 0 ? 1 : 0) : 0;
    counter_bytes = (static_cast<size_t>(counters) * sizeof(unsigned) + 15) / 16 * 16;
    kinds = pass.dbias.data != nullptr || !vector ? 2 : 1;
  }

  // The sums of a gradient in fp64 must be better than fp32 allows.
  static bool wants_double(const PerCap& gradient) {
    return gradient.data != nullptr && gradient.dtype == DType::kFloat64;
  }

  Workspace workspace() const {
    if (counters == 0) return {};
    return {counter_bytes + static_cast<size_t>(kinds * plan.partials + channels) * sum_bytes, counter_bytes};
  }

  OperandSet operands;
  CapReading cap;
  BackwardPlan plan;
  bool vector = false;
  size_t sum_bytes = 0;
  int64_t channels = 0;
  int64_t counters = 0;
  size_t counter_bytes = 0;
  int kinds = 1;
};

template <class Real>
LastBlockReduction<Real> reduction_of(const Problem& problem, const Backward& pass, const Choice& choice,
                                      void* workspace) {
  LastBlockReduction<Real> finish{};
  const PerCap* const from[] = {&pass.cap, &pass.dcap, &pass.dbias};
  CapArray* const to[] = {&finish.cap, &finish.gradient[kCapSum], &finish.gradient[kBiasSum]};
  finish.index = index_caps(problem, from, to);
  finish.grad_penalty = pass.grad_penalty;
  finish.penalty_factor = 2 * pass.balancer;
  finish.caps = problem.layout.caps;
  finish.cap_tiles = choice.plan.by_rows ? problem.layout.caps : choice.plan.columns.tiles;
  finish.cap_blocks = choice.plan.cap_blocks;
  finish.counters = static_cast<unsigned*>(workspace);
  auto* sums = reinterpret_cast<Partial<Real>*>(static_cast<unsigned char*>(workspace) + choice.counter_bytes);
  finish.partials[kCapSum] = sums;
  finish.partials[kBiasSum] = sums + (choice.kinds == 2 ? choice.plan.partials : 0);
  if (choice.channels > 0) {
    finish.channel_sums = sums + choice.kinds * choice.plan.partials;
    finish.finished_cap_tiles = finish.counters + choice.plan.counters;
  }
  return finish;
}

template <class Traits>
typename Traits::Parameters parameters(const Problem& problem, const Backward& pass, const Choice& choice,
                                       void* workspace) {
  constexpr bool kVector = Traits::kAccess == Access::kVector;
  const BackwardPlan& plan = choice.plan;
  typename Traits::Parameters p{};
  if constexpr (kVector)
    choice.operands.fill(&p.saved.operands);
  else
    choice.operands.fill(&p.saved.operands, plan.by_rows || plan.columns.aligned);
  p.saved.mask = pass.mask;
  p.wants_x = pass.dx.data != nullptr;
  p.numel = problem.numel();
  p.layout = merged(problem.layout);
  p.map = cap_map(p.layout);
  choice.cap.fill(&p.cap);
  p.finish = reduction_of<typename Traits::SumType>(problem, pass, choice, workspace);
  p.rows = plan.rows;
  const int64_t many = plan.rows.packed ? plan.rows.vecs : plan.rows.segments;
  p.runs = {FastDivmod::of(plan.rows.packed ? plan.rows.run_vecs : std::max<int64_t>(1, plan.rows.segments_per_run)),
            many < INT32_MAX / 2};
  p.head = kVector ? static_cast<int>(choice.operands.head()) : 0;
  p.columns = plan.columns;
  return p;
}

template <class DTypeTraits, Access kAccess, int kSums>
Status launch_as(const Problem& problem, const Backward& pass, const Choice& choice, void* workspace) {
  using Traits = BackwardTraits<DTypeTraits, kAccess, kSums>;
  using P = Partial<typename Traits::SumType>;
  const BackwardPlan& plan = choice.plan;
  const auto p = parameters<Traits>(problem, pass, choice, workspace);
  if (plan.by_rows) {
    const size_t shared = std::max(kTicketBytes + kRowThreads * sizeof(P), size_t{kRowThreads} * kScratchBytes);
    auto kernel = backward_rows_kernel<Traits>;
    if constexpr (kAccess == Access::kVector)
      if (plan.rows.packed) kernel = backward_rows_kernel<BackwardTraits<DTypeTraits, kAccess, kSums, true>>;
    return launch("dreluop backward by rows", kernel, plan.blocks, kRowThreads, shared, problem.stream, p);
  }
  const size_t sums = static_cast<size_t>(plan.columns.width) * plan.columns.height * vec_of(problem.dtype);
  const size_t shared = std::max(kTicketBytes + sums * sizeof(P), size_t{kColumnThreads} * kScratchBytes);
  return launch("dreluop backward by columns", backward_columns_kernel<Traits>, plan.blocks, kColumnThreads, shared,
                problem.stream, p);
}

}  // namespace

Workspace backward_workspace(const Problem& problem, const Backward& pass) {
  check(problem);
  return Choice(problem, pass).workspace();
}

Status backward(const Problem& problem, const Backward& pass, void* workspace) {
  check(problem);
  const bool wants_sums = pass.dcap.data != nullptr || pass.dbias.data != nullptr;
  if (pass.dx.data == nullptr && !wants_sums) return {};
  if (problem.numel() > 0 && pass.grad.data == nullptr) refuse("grad: missing");
  check_saved(problem, pass.y, pass.mask, pass.cap);
  if (pass.dcap.data != nullptr && pass.grad_penalty.data != nullptr && pass.cap.data == nullptr)
    refuse("cap: needed for the gradient of the penalty");
  const Choice choice(problem, pass);
  const Status zeroed = zero(workspace, choice.workspace().zeroed, problem.stream);
  if (!zeroed.ok()) return zeroed;
  return with_dtype_traits(problem.dtype, [&](auto traits) {
    using DTypeTraits = decltype(traits);
    if constexpr (!std::is_same_v<DTypeTraits, Float64>) {
      if (choice.vector && choice.kinds == 1)
        return launch_as<DTypeTraits, Access::kVector, 1>(problem, pass, choice, workspace);
      if (choice.vector) return launch_as<DTypeTraits, Access::kVector, 2>(problem, pass, choice, workspace);
    }
    return launch_as<DTypeTraits, Access::kGeneral, 2>(problem, pass, choice, workspace);
  });
}

}  // namespace dreluop::cuda
