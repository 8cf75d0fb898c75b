// Passes that are not on the way of every training step: tangent, surrogate, saturation, and the penalty by itself.
#include "cuda/arguments.h"
#include "cuda/cap_list.cuh"
#include "cuda/saturation.cuh"
#include "cuda/surrogate.cuh"
#include "cuda/tangent.cuh"

namespace dreluop::cuda {
namespace {

constexpr size_t kScratch = size_t{kFlatThreads} * kScratchBytes;

int64_t segments_of(const CapTensor& tensor) {
  int64_t numel = 1;
  for (int d = 0; d < tensor.rank; ++d) numel *= tensor.sizes[d];
  return up_to(numel, kSegmentOfCaps);
}

// Workspace of the penalty: a counter per launch, the sum carried from launch to launch, a partial sum per block.
struct PenaltySpace {
  explicit PenaltySpace(const std::vector<CapTensor>& caps) : launches(up_to(caps.size(), kCapsPerLaunch)) {
    for (size_t first = 0; first < caps.size(); first += kCapsPerLaunch) {
      int64_t segments = 0;
      for (size_t k = first; k < std::min(caps.size(), first + kCapsPerLaunch); ++k) segments += segments_of(caps[k]);
      most_segments = std::max(most_segments, segments);
    }
    counter_bytes = (static_cast<size_t>(launches) * sizeof(unsigned) + 15) / 16 * 16;
  }
  Workspace workspace() const {
    if (launches == 1 && most_segments <= 1) return {};
    return {counter_bytes + (1 + static_cast<size_t>(most_segments)) * sizeof(Sum<double>), counter_bytes};
  }

  int64_t launches = 0;
  int64_t most_segments = 0;
  size_t counter_bytes = 0;
};

void check_list(const std::vector<CapTensor>& caps) {
  if (caps.empty()) refuse("caps: got no tensor; expected at least one");
}

// Tensors [first, last) with, for the backward pass, their gradients.
template <int kTensors>
PenaltyListParameters<kTensors> list(const std::vector<CapTensor>& caps, const std::vector<CapTensor>* gradients,
                                     size_t first, size_t last, double factor, Scalar scalar) {
  PenaltyListParameters<kTensors> p{};
  p.count = static_cast<int>(last - first);
  p.factor = factor;
  p.scalar = scalar;
  for (size_t k = first; k < last; ++k) {
    ListedTensor& to = p.tensors[k - first];
    to.first_segment = p.segments;
    to.data = caps[k].data;
    to.dtype = caps[k].dtype;
    to.numel = 1;
    for (int d = 0; d < caps[k].rank; ++d) to.numel *= caps[k].sizes[d];
    if (gradients != nullptr) to.gradient = (*gradients)[k].data;
    const int64_t* const strides[] = {caps[k].strides, gradients != nullptr ? (*gradients)[k].strides : nullptr};
    int64_t merged_strides[2][kTensorDims];
    to.rank = merge_dimensions(caps[k].rank, caps[k].sizes, strides, to.sizes, merged_strides, "caps");
    std::copy_n(merged_strides[0], to.rank, to.strides);
    std::copy_n(merged_strides[1], to.rank, to.gradient_strides);
    p.segments += segments_of(caps[k]);
  }
  return p;
}

template <int kTensors>
Status penalty_part(const std::vector<CapTensor>& caps, size_t first, size_t last, double balancer, Scalar result,
                    const PenaltySpace& space, void* workspace, void* stream) {
  auto p = list<kTensors>(caps, nullptr, first, last, balancer, result);
  auto* sums = reinterpret_cast<Sum<double>*>(static_cast<unsigned char*>(workspace) + space.counter_bytes);
  if (first > 0) p.carried = sums;
  if (last < caps.size()) p.carry = sums;
  p.partials = sums + 1;
  p.counter = static_cast<unsigned*>(workspace) + first / kCapsPerLaunch;
  return launch("dreluop penalty", penalty_kernel<kTensors>, checked_blocks(std::max<int64_t>(1, p.segments)),
                kFlatThreads, kScratch, stream, p);
}

template <int kTensors>
Status penalty_backward_part(const std::vector<CapTensor>& caps, const std::vector<CapTensor>& gradients, size_t first,
                             size_t last, double balancer, Scalar grad, void* stream) {
  const auto p = list<kTensors>(caps, &gradients, first, last, 2 * balancer, grad);
  return launch("dreluop penalty backward", penalty_backward_kernel<kTensors>, checked_blocks(p.segments), kFlatThreads,
                0, stream, p);
}

}  // namespace

Status tangent(const Problem& problem, const Tangent& pass) {
  check(problem);
  const int64_t numel = numel_of(problem);
  if (numel > 0 && (pass.u.data == nullptr || pass.out.data == nullptr)) refuse("u, out: missing");
  if (numel > 0 && pass.y.data == nullptr && pass.mask == nullptr) refuse("y: missing, and there is no mask");
  if (numel > 0 && pass.mask == nullptr && pass.cap.data == nullptr) refuse("cap: needed to tell regions from y");
  TangentParameters p{};
  OperandSet(problem, {pass.u, pass.y, pass.out}).fill(&p.saved.operands);
  p.saved.mask = pass.mask;
  p.plan = flat_plan(problem.dtype, numel, 0, kInFlightOfTwo);
  p.map = cap_map(merged(problem.layout));
  CapReading(problem, pass.cap).fill(&p.cap);
  CapReading(problem, pass.v).fill(&p.v);
  return with_dtype_traits(problem.dtype, [&](auto traits) {
    return launch("dreluop tangent", tangent_kernel<decltype(traits)>, p.plan.blocks, kFlatThreads, kScratch,
                  problem.stream, p);
  });
}

Status surrogate(const Problem& problem, const Surrogate& pass) {
  check(problem);
  const int64_t numel = numel_of(problem);
  const bool soft = pass.width.data != nullptr;
  if (numel > 0 && (pass.grad.data == nullptr || pass.dx.data == nullptr)) refuse("grad, dx: missing");
  if (numel > 0 && pass.saved.data == nullptr && pass.mask == nullptr) refuse("saved: missing, and there is no mask");
  if (soft && pass.mask != nullptr) refuse("mask: the soft form needs x");
  if (numel > 0 && soft && pass.cap.data == nullptr) refuse("cap: missing");
  SurrogateParameters p{};
  OperandSet(problem, {pass.grad, pass.saved, pass.dx}).fill(&p.operands);
  p.mask = pass.mask;
  p.plan = flat_plan(problem.dtype, numel, 0, kInFlightOfTwo);
  p.map = cap_map(merged(problem.layout));
  CapReading(problem, pass.cap).fill(&p.cap);
  CapReading(problem, pass.width).fill(&p.width);
  return with_dtype_traits(problem.dtype, [&](auto traits) {
    return launch("dreluop surrogate", surrogate_kernel<decltype(traits)>, p.plan.blocks, kFlatThreads, kScratch,
                  problem.stream, p);
  });
}

Status saturation(const Problem& problem, const Saturation& pass) {
  check(problem);
  const int64_t numel = numel_of(problem), caps = problem.layout.caps;
  if (pass.counts == nullptr && caps > 0) refuse("counts: missing");
  if (pass.has_gradient == nullptr && pass.samples > 0) refuse("has_gradient: missing");
  if (numel > 0 && (pass.x.data == nullptr || pass.cap.data == nullptr)) refuse("x, cap: missing");
  Status status = zero(pass.counts, static_cast<size_t>(3 * caps) * sizeof(int64_t), problem.stream);
  if (status.ok()) status = zero(pass.has_gradient, static_cast<size_t>(pass.samples), problem.stream);
  if (!status.ok() || numel == 0) return status;
  SaturationParameters p{};
  OperandSet(problem, {pass.x}).fill(&p.operands);
  p.plan = flat_plan(problem.dtype, numel, 0, kSaturationVecs);
  p.plan.blocks = checked_blocks(up_to(numel, int64_t{kFlatThreads} * kSaturationVecs * vec_of(problem.dtype)));
  p.map = cap_map(merged(problem.layout));
  p.samples = cap_map({1, pass.samples, pass.sample_inner});
  CapReading(problem, pass.cap).fill(&p.cap);
  const PerCap counts{pass.counts, DType::kFloat64, pass.counts_strides};
  const PerCap* const from[] = {&counts};
  CapArray* const to[] = {&p.counts};
  p.index = index_caps(problem, from, to);
  p.caps = caps;
  p.has_gradient = pass.has_gradient;
  const size_t shared =
      kScratch + (3 * caps <= kMostSharedCounts ? static_cast<size_t>(3 * caps) * sizeof(unsigned) : 0);
  return with_dtype_traits(problem.dtype, [&](auto traits) {
    return launch("dreluop saturation", saturation_kernel<decltype(traits)>, p.plan.blocks, kFlatThreads, shared,
                  problem.stream, p);
  });
}

Workspace penalty_workspace(const std::vector<CapTensor>& caps) {
  check_list(caps);
  return PenaltySpace(caps).workspace();
}

Status penalty(const std::vector<CapTensor>& caps, double balancer, Scalar result, void* workspace, void* stream) {
  check_list(caps);
  const PenaltySpace space(caps);
  Status status = zero(workspace, space.workspace().zeroed, stream);
  for (size_t first = 0; status.ok() && first < caps.size(); first += kCapsPerLaunch) {
    const size_t last = std::min(caps.size(), first + kCapsPerLaunch);
    status = last - first <= kFewTensors
                 ? penalty_part<kFewTensors>(caps, first, last, balancer, result, space, workspace, stream)
                 : penalty_part<kCapsPerLaunch>(caps, first, last, balancer, result, space, workspace, stream);
  }
  return status;
}

Status penalty_backward(const std::vector<CapTensor>& caps, const std::vector<CapTensor>& gradients, double balancer,
                        Scalar grad, void* stream) {
  check_list(caps);
  if (gradients.size() != caps.size()) refuse("gradients: expected one per cap");
  Status status;
  for (size_t first = 0; status.ok() && first < caps.size(); first += kCapsPerLaunch) {
    const size_t last = std::min(caps.size(), first + kCapsPerLaunch);
    status = last - first <= kFewTensors
                 ? penalty_backward_part<kFewTensors>(caps, gradients, first, last, balancer, grad, stream)
                 : penalty_backward_part<kCapsPerLaunch>(caps, gradients, first, last, balancer, grad, stream);
  }
  return status;
}

}  // namespace dreluop::cuda
