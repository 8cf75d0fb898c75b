#include "cuda/arguments.h"
#include "cuda/forward.cuh"

namespace dreluop::cuda {
namespace {

constexpr size_t kScratch = size_t{kFlatThreads} * kScratchBytes;

Penalty penalty_of(const Problem& problem, const Forward& pass, const CapReading& cap, void* workspace) {
  Penalty penalty{};
  if (pass.penalty.data == nullptr) return penalty;
  // A single cap counts once, also where it is read once per channel.
  penalty.count = problem.shared_cap ? std::min<int64_t>(1, problem.layout.caps) : problem.layout.caps;
  penalty.blocks = penalty_blocks(penalty.count);
  penalty.index = cap.index;
  penalty.cap = cap.array;
  penalty.balancer = pass.balancer;
  penalty.result = pass.penalty;
  penalty.counter = static_cast<unsigned*>(workspace);
  penalty.partials = reinterpret_cast<Sum<double>*>(static_cast<unsigned char*>(workspace) + 16);
  return penalty;
}

template <class Traits, Access kAccess, CapMode kMode, bool kFused>
Status launch_as(const Problem& problem, const Forward& pass, const OperandSet& operands, const CapReading& cap,
                 const CapReading& bias, void* workspace) {
  ForwardParameters<kAccess> p{};
  operands.fill(&p.operands);
  p.plan = flat_plan(problem.dtype, numel_of(problem), kAccess == Access::kVector ? operands.head() : 0,
                     kFused ? kInFlightOfTwo : kInFlight, problem.multiprocessors);
  p.map = cap_map(merged(problem.layout));
  cap.fill(&p.cap);
  bias.fill(&p.bias);
  p.has_residual = pass.residual.data != nullptr;
  p.mask = pass.mask;
  p.penalty = penalty_of(problem, pass, cap, workspace);
  return launch("dreluop forward", forward_kernel<Traits, kAccess, kMode, kFused>,
                checked_blocks(p.plan.blocks + p.penalty.blocks), kFlatThreads, kScratch, problem.stream, p);
}

template <class Traits, CapMode kMode>
Status launch_vector(bool fused, const Problem& problem, const Forward& pass, const OperandSet& operands,
                     const CapReading& cap, const CapReading& bias, void* workspace) {
  if (fused) return launch_as<Traits, Access::kVector, kMode, true>(problem, pass, operands, cap, bias, workspace);
  return launch_as<Traits, Access::kVector, kMode, false>(problem, pass, operands, cap, bias, workspace);
}

}  // namespace

Workspace forward_workspace(const Problem& problem, const Forward& pass) {
  if (pass.penalty.data == nullptr || penalty_blocks(problem.layout.caps) == 1) return {};
  return {16 + static_cast<size_t>(penalty_blocks(problem.layout.caps)) * sizeof(Sum<double>), sizeof(unsigned)};
}

Status forward(const Problem& problem, const Forward& pass, void* workspace) {
  check(problem);
  if (pass.cap.data == nullptr && problem.layout.caps > 0) refuse("cap: missing");
  if (numel_of(problem) > 0 && (pass.x.data == nullptr || pass.y.data == nullptr)) refuse("x, y: missing");
  const OperandSet operands(problem, {pass.x, pass.y, pass.residual});
  const CapReading cap(problem, pass.cap), bias(problem, pass.bias);
  const bool fused = pass.bias.data != nullptr || pass.residual.data != nullptr;
  CapMode mode = cap_mode(problem.dtype, merged(problem.layout), operands.head());
  const bool vector = operands.vector() && (operands.head() == 0 || pass.mask == nullptr) &&
                      cap.simple(problem.dtype) && bias.simple(problem.dtype) &&
                      (mode == CapMode::kSpan || (mode == CapMode::kAligned && cap.aligned() && bias.aligned()));
  const Status zeroed = zero(workspace, forward_workspace(problem, pass).zeroed, problem.stream);
  if (!zeroed.ok()) return zeroed;
  return with_dtype_traits(problem.dtype, [&](auto traits) {
    using Traits = decltype(traits);
    if constexpr (!std::is_same_v<Traits, Float64>) {
      if (vector && mode == CapMode::kSpan)
        return launch_vector<Traits, CapMode::kSpan>(fused, problem, pass, operands, cap, bias, workspace);
      if (vector) return launch_vector<Traits, CapMode::kAligned>(fused, problem, pass, operands, cap, bias, workspace);
    }
    return launch_as<Traits, Access::kGeneral, CapMode::kEach, true>(problem, pass, operands, cap, bias, workspace);
  });
}

}  // namespace dreluop::cuda
