#include "cuda/batch_norm_launch.cuh"

namespace dreluop::cuda {
namespace {

constexpr int kMoments = 2;

StepPlan step_of_moments(const Problem& problem, const BatchNorm& pass) { return {problem, {pass.x}}; }

}  // namespace

Workspace batch_norm_workspace(const Problem& problem, const BatchNorm& pass) {
  check_batch_norm(problem, pass.cap, pass.mean, pass.var);
  if (!pass.trains || problem.numel() == 0) return {};
  const BatchNormSpace space(step_of_moments(problem, pass), kMoments);
  return {space.bytes, space.counter_bytes};
}

Status batch_norm(const Problem& problem, const BatchNorm& pass, void* workspace) {
  check_batch_norm(problem, pass.cap, pass.mean, pass.var);
  if (problem.numel() == 0) return {};
  if (pass.x.data == nullptr || pass.y.data == nullptr) refuse("x, y: missing");
  BatchNormArguments arguments = batch_norm_arguments(problem, pass);
  Status status;
  if (pass.trains) {
    const StepPlan step = step_of_moments(problem, pass);
    const BatchNormSpace space(step, kMoments);
    space.give(step, workspace, &arguments);
    status = zero(workspace, space.counter_bytes, problem.stream);
    if (status.ok())
      status = launch_batch_norm<Step::kMoments>("dreluop batch norm, moments", problem, step, arguments);
    if (!status.ok()) return status;
  }
  const StepPlan step(problem, {pass.x, pass.y, pass.residual});
  // A byte of the mask has one writer; where vectors share bytes, forward finds it of y.
  const bool writes_mask = step.only_whole_vectors && StepPlan::whole_bytes(problem.dtype, pass.mask);
  if (writes_mask) arguments.mask = pass.mask;
  arguments.has_residual = pass.residual.data != nullptr;
  status = launch_batch_norm<Step::kActivation>("dreluop batch norm", problem, step, arguments);
  if (!status.ok() || pass.mask == nullptr || writes_mask) return status;
  Forward masking;
  masking.x = masking.y = pass.y;
  masking.cap = pass.cap;
  masking.mask = pass.mask;
  return forward(problem, masking, nullptr);
}

}  // namespace dreluop::cuda
