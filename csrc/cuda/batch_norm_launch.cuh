// From a caller's description of batch normalization to the launch of a step.
#pragma once

#include "cuda/arguments.h"
#include "cuda/batch_norm_columns.cuh"
#include "cuda/batch_norm_rows.cuh"

namespace dreluop::cuda {

inline void check_batch_norm(const Problem& problem, const PerCap& cap, const PerCap& mean, const PerCap& var) {
  check(problem);
  if (problem.cap_rank != 1) refuse("cap: batch normalization has one dimension of channels");
  if (cap.data == nullptr || mean.data == nullptr || var.data == nullptr) refuse("cap, mean, var: missing");
}

// How a step goes over its operands. `mask`: what it reads, if anything.
struct StepPlan {
  StepPlan(const Problem& problem, std::initializer_list<Operand> list, const uint8_t* mask = nullptr)
      : operands(problem, list), layout(merged(problem.layout)) {
    const int64_t vec = vec_of(problem.dtype);
    const bool by_rows = goes_by_rows(problem.dtype, layout);
    vector = problem.dtype != DType::kFloat64 && operands.vector() && whole_bytes(problem.dtype, mask) &&
             (operands.head() == 0 || (by_rows && mask == nullptr));
    const bool packed = vector && by_rows && (layout.caps == 1 || (operands.head() == 0 && layout.inner % vec == 0));
    plan = backward_plan(problem.dtype, layout, std::max(1, problem.multiprocessors), packed,
                         vector ? operands.head() : 0);
    vector = vector && (by_rows || plan.columns.aligned);
    const ColumnPlan& columns = plan.columns;
    const bool no_edges = by_rows ? packed && (layout.caps > 1 || problem.numel() % vec == 0)
                                  : columns.rows * columns.row == problem.numel();
    only_whole_vectors = vector && operands.head() == 0 && no_edges;
  }

  static bool whole_bytes(DType dtype, const uint8_t* mask) {
    return reinterpret_cast<uintptr_t>(mask) % static_cast<uintptr_t>(vec_of(dtype) / kElementsPerByte) == 0;
  }

  OperandSet operands;
  CapLayout layout;
  BackwardPlan plan;
  bool vector = false;
  bool only_whole_vectors = false;
};

// Workspace of a step with sums: counters, partial sums, totals of channels, slopes.
struct BatchNormSpace {
  BatchNormSpace(const StepPlan& step, int sums) {
    const int64_t caps = step.layout.caps;
    cap_tiles = step.plan.by_rows ? caps : step.plan.columns.tiles;
    counter_bytes = (static_cast<size_t>(cap_tiles + 1) * sizeof(unsigned) + 15) / 16 * 16;
    partial_bytes = static_cast<size_t>(sums * step.plan.partials) *
                    (step.vector ? sizeof(Partial<float>) : sizeof(Partial<double>));
    total_bytes = static_cast<size_t>(sums * caps) * sizeof(double);
    bytes = counter_bytes + partial_bytes + total_bytes + static_cast<size_t>(2 * caps) * sizeof(double);
  }

  void give(const StepPlan& step, void* workspace, BatchNormArguments* to) const {
    auto* memory = static_cast<unsigned char*>(workspace);
    to->sums.cap_tiles = cap_tiles;
    to->sums.cap_blocks = step.plan.cap_blocks;
    to->sums.counters = static_cast<unsigned*>(workspace);
    to->sums.partials = memory + counter_bytes;
    to->sums.totals = reinterpret_cast<double*>(memory + counter_bytes + partial_bytes);
    to->slopes = memory + counter_bytes + partial_bytes + total_bytes;
  }

  int64_t cap_tiles = 0;
  size_t counter_bytes = 0, partial_bytes = 0, total_bytes = 0, bytes = 0;
};

inline ChannelArray channel_array(const PerCap& given) {
  return {given.data, given.dtype, given.data == nullptr ? 0 : given.strides[0]};
}

template <class Pass>
BatchNormArguments batch_norm_arguments(const Problem& problem, const Pass& pass) {
  BatchNormArguments arguments{};
  arguments.weight = channel_array(pass.weight);
  arguments.bias = channel_array(pass.bias);
  arguments.cap = channel_array(pass.cap);
  arguments.mean = channel_array(pass.mean);
  arguments.var = channel_array(pass.var);
  arguments.eps = pass.eps;
  arguments.trains = pass.trains;
  arguments.shared_cap = problem.shared_cap;
  return arguments;
}

template <class Traits>
typename Traits::Parameters batch_norm_parameters(const Problem& problem, const StepPlan& step,
                                                  const BatchNormArguments& arguments) {
  const BackwardPlan& plan = step.plan;
  const CapLayout& layout = step.layout;
  typename Traits::Parameters p{};
  static_cast<BatchNormArguments&>(p) = arguments;
  if constexpr (Traits::kGeneral)
    step.operands.fill(&p.operands, plan.by_rows || plan.columns.aligned);
  else
    step.operands.fill(&p.operands);
  p.numel = problem.numel();
  p.layout = layout;
  p.map = cap_map(layout);
  const int64_t n = layout.outer * layout.inner, of_channel[] = {0, n / 2, n - 1};
  for (int k = 0; k < 3; ++k)
    p.median[k] = of_channel[k] / layout.inner * layout.caps * layout.inner + of_channel[k] % layout.inner;
  p.rows = plan.rows;
  const int64_t many = plan.rows.packed ? plan.rows.vecs : plan.rows.segments;
  p.runs = {FastDivmod::of(plan.rows.packed ? plan.rows.run_vecs : std::max<int64_t>(1, plan.rows.segments_per_run)),
            many < INT32_MAX / 2};
  p.head = Traits::kGeneral ? 0 : static_cast<int>(step.operands.head());
  p.columns = plan.columns;
  return p;
}

template <class Traits>
Status launch_batch_norm_as(const char* name, const Problem& problem, const StepPlan& step,
                            const BatchNormArguments& arguments) {
  using P = Partial<typename Traits::SumType>;
  constexpr size_t kScratch = Traits::kGeneral ? kScratchOfBlock : 0;
  // Of the widest tile, all of whose columns are channels.
  static_assert(sizeof(Channel<Traits>) * kColumnThreads * Traits::kVec <= 49152);
  const ColumnPlan& columns = step.plan.columns;
  const auto p = batch_norm_parameters<Traits>(problem, step, arguments);
  const size_t channels = step.plan.by_rows ? 1 : static_cast<size_t>(columns.tile_caps);
  const size_t terms = step.plan.by_rows ? kRowThreads : size_t{1} * columns.width * columns.height * Traits::kVec;
  const size_t shared = std::max(
      {kScratch, channels * sizeof(Channel<Traits>), Traits::kSums > 0 ? kTicketBytes + terms * sizeof(P) : size_t{0}});
  if (!step.plan.by_rows)
    return launch(name, batch_norm_columns_kernel<Traits>, step.plan.blocks, kColumnThreads, shared, problem.stream, p);
  auto kernel = batch_norm_rows_kernel<Traits>;
  if constexpr (!Traits::kGeneral)
    if (step.plan.rows.packed)
      kernel = batch_norm_rows_kernel<
          BatchNormTraits<typename Traits::Number, Traits::kAccess, Traits::kStep, /*kPackedRows=*/true>>;
  return launch(name, kernel, step.plan.blocks, kRowThreads, shared, problem.stream, p);
}

template <Step kStep>
Status launch_batch_norm(const char* name, const Problem& problem, const StepPlan& step,
                         const BatchNormArguments& arguments) {
  return with_dtype_traits(problem.dtype, [&](auto traits) {
    using DTypeTraits = decltype(traits);
    if constexpr (!std::is_same_v<DTypeTraits, Float64>)
      if (step.vector)
        return launch_batch_norm_as<BatchNormTraits<DTypeTraits, Access::kVector, kStep>>(name, problem, step,
                                                                                          arguments);
    return launch_batch_norm_as<BatchNormTraits<DTypeTraits, Access::kGeneral, kStep>>(name, problem, step, arguments);
  });
}

}  // namespace dreluop::cuda
