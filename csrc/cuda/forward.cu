#include "cuda/arguments.h"
#include "cuda/forward_general.cuh"

namespace dreluop::cuda {
namespace {

Penalty penalty_of(const Problem& problem, const Forward& pass, const CapReading& cap, void* workspace) {
  Penalty penalty{};
  if (pass.penalty.data == nullptr) return penalty;
  penalty.count = problem.distinct_caps();
  penalty.blocks = penalty_blocks(penalty.count);
  penalty.index = cap.index;
  penalty.cap = cap.array;
  penalty.balancer = pass.balancer;
  penalty.result = pass.penalty;
  penalty.counter = static_cast<unsigned*>(workspace);
  penalty.partials = reinterpret_cast<Sum<double>*>(static_cast<unsigned char*>(workspace) + 16);
  return penalty;
}

struct Reading {
  OperandSet operands;
  CapReading cap, bias;
};

template <class Traits>
Status launch_as(void (*kernel)(typename Traits::Parameters), const Problem& problem, const Forward& pass,
                 const Reading& reading, void* workspace) {
  typename Traits::Parameters p{};
  reading.operands.fill(&p.operands);
  p.plan = flat_plan(problem.dtype, problem.numel(), Traits::kAccess == Access::kVector ? reading.operands.head() : 0,
                     Traits::kVecs, problem.multiprocessors);
  p.map = cap_map(merged(problem.layout));
  reading.cap.fill(&p.cap);
  reading.bias.fill(&p.bias);
  p.has_residual = pass.residual.data != nullptr;
  p.zeroed = pass.zeroed;
  p.mask = pass.mask;
  p.penalty = penalty_of(problem, pass, reading.cap, workspace);
  return launch("dreluop forward", kernel, checked_blocks(p.plan.blocks + p.penalty.blocks), kFlatThreads,
                kScratchOfBlock, problem.stream, p);
}

template <class DTypeTraits, CapMode kMode>
Status launch_vector(const Problem& problem, const Forward& pass, const Reading& reading, void* workspace) {
  using Alone = ForwardTraits<DTypeTraits, Access::kVector, kMode, false>;
  using Fused = ForwardTraits<DTypeTraits, Access::kVector, kMode, true>;
  if (pass.bias.data != nullptr || pass.residual.data != nullptr)
    return launch_as<Fused>(forward_kernel<Fused>, problem, pass, reading, workspace);
  return launch_as<Alone>(forward_kernel<Alone>, problem, pass, reading, workspace);
}

}  // namespace

Workspace forward_workspace(const Problem& problem, const Forward& pass) {
  if (pass.penalty.data == nullptr || penalty_blocks(problem.layout.caps) == 1) return {};
  return {16 + static_cast<size_t>(penalty_blocks(problem.layout.caps)) * sizeof(Sum<double>), sizeof(unsigned)};
}

Status forward(const Problem& problem, const Forward& pass, void* workspace) {
  check(problem);
  if (pass.cap.data == nullptr && problem.layout.caps > 0) refuse("cap: missing");
  if (problem.numel() > 0 && (pass.x.data == nullptr || pass.y.data == nullptr)) refuse("x, y: missing");
  const Reading reading{{problem, {pass.x, pass.y, pass.residual}}, {problem, pass.cap}, {problem, pass.bias}};
  const auto& [operands, cap, bias] = reading;
  const CapMode mode = cap_mode(problem.dtype, merged(problem.layout), operands.head());
  const bool vector = operands.vector() && (operands.head() == 0 || pass.mask == nullptr) &&
                      cap.simple(problem.dtype) && bias.simple(problem.dtype) &&
                      (mode == CapMode::kSpan || (mode == CapMode::kAligned && cap.aligned() && bias.aligned()));
  const Status zeroed = zero(workspace, forward_workspace(problem, pass).zeroed, problem.stream);
  if (!zeroed.ok()) return zeroed;
  return with_dtype_traits(problem.dtype, [&](auto traits) {
    using DTypeTraits = decltype(traits);
    if constexpr (!std::is_same_v<DTypeTraits, Float64>) {
      if (vector && mode == CapMode::kSpan)
        return launch_vector<DTypeTraits, CapMode::kSpan>(problem, pass, reading, workspace);
      if (vector) return launch_vector<DTypeTraits, CapMode::kAligned>(problem, pass, reading, workspace);
    }
    using Traits = GeneralForwardTraits<DTypeTraits>;
    return launch_as<Traits>(forward_general_kernel<Traits>, problem, pass, reading, workspace);
  });
}

}  // namespace dreluop::cuda
