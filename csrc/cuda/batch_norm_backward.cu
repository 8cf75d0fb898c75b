#include "cuda/batch_norm_launch.cuh"

namespace dreluop::cuda {
namespace {

constexpr int kGradientSums = 3;

StepPlan step_of_sums(const Problem& problem, const BatchNormBackward& pass) {
  return {problem, {pass.x, pass.grad}, pass.mask};
}

bool has_sums(const BatchNormBackward& pass) {
  return (pass.trains && pass.dx.data != nullptr) || pass.dweight.data != nullptr || pass.dbias.data != nullptr ||
         pass.dcap.data != nullptr;
}

}  // namespace

Workspace batch_norm_backward_workspace(const Problem& problem, const BatchNormBackward& pass) {
  check_batch_norm(problem, pass.cap, pass.mean, pass.var);
  if (!has_sums(pass) || problem.numel() == 0) return {};
  const BatchNormSpace space(step_of_sums(problem, pass), kGradientSums);
  return {space.bytes, space.counter_bytes};
}

Status batch_norm_backward(const Problem& problem, const BatchNormBackward& pass, void* workspace) {
  check_batch_norm(problem, pass.cap, pass.mean, pass.var);
  if (problem.numel() == 0) return {};
  if (pass.grad.data == nullptr || pass.x.data == nullptr) refuse("grad, x: missing");
  BatchNormArguments arguments = batch_norm_arguments(problem, pass);
  arguments.mask = const_cast<uint8_t*>(pass.mask);
  arguments.dweight = channel_array(pass.dweight);
  arguments.dbias = channel_array(pass.dbias);
  arguments.dcap = channel_array(pass.dcap);
  arguments.wants_x = pass.dx.data != nullptr;
  arguments.wants_residual = pass.dresidual.data != nullptr;
  Status status;
  if (has_sums(pass)) {
    const StepPlan step = step_of_sums(problem, pass);
    const BatchNormSpace space(step, kGradientSums);
    space.give(step, workspace, &arguments);
    status = zero(workspace, space.counter_bytes, problem.stream);
    if (status.ok())
      status = launch_batch_norm<Step::kGradientSums>("dreluop batch norm backward, sums", problem, step, arguments);
  }
  if (!status.ok() || (!arguments.wants_x && !arguments.wants_residual)) return status;
  const StepPlan step(problem, {pass.x, pass.grad, pass.dx, pass.dresidual}, pass.mask);
  return launch_batch_norm<Step::kGradients>("dreluop batch norm backward", problem, step, arguments);
}

}  // namespace dreluop::cuda
