#include "cpu/traverse.h"

namespace dreluop::cpu {
namespace {

template <class Traits>
void forward_as(const Problem& problem, const Operand& x, const BiasAndResidual& added, const Operand& y,
                uint8_t* mask) {
  using T = typename Traits::Storage;
  const Primitives<Traits>& loops = primitives<Traits>();
  const Plan plan = plan_for(problem.numel, problem.layout);
  const CapValues<T> caps(plan, problem.layout, static_cast<const T*>(problem.caps));
  const auto* bias_values = static_cast<const Wide<Traits>*>(added.bias);
  const CapValues<Wide<Traits>> bias(plan, problem.layout, bias_values);
  const bool adds = added.bias != nullptr || added.residual != nullptr;
  const bool direct = x.is_linear() && y.is_linear() && mask == nullptr && !adds;

  parallel_over_blocks(problem, [&](int64_t begin, int64_t end) {
    T x_buffer[kBlock], y_buffer[kBlock], residual_buffer[kBlock];
    uint8_t regions[kBlock];
    const auto add = [&](int64_t i, int64_t n, int64_t cap, int64_t column, const T* from, T* to) {
      const T* residual = added.residual != nullptr ? added.residual->read(i, n, residual_buffer) : nullptr;
      if (bias_values != nullptr && plan.variant == Variant::kColumns)
        loops.add_each(from, bias.at(column), residual, to, n);
      else
        loops.add_one(from, bias_values != nullptr ? bias[cap] : 0, residual, to, n);
    };
    const auto stretch = [&](int64_t i, int64_t n, int64_t cap, int64_t column) {
      const T* from = x.read(i, n, x_buffer);
      T* to = y.target(i, n, y_buffer);
      if (adds) {
        add(i, n, cap, column, from, to);
        from = to;
      }
      if (plan.variant == Variant::kRuns)
        loops.forward_one(from, caps[cap], to, n);
      else
        loops.forward_each(from, caps.at(column), to, n);
      if (mask != nullptr) {
        uint8_t* const region = regions + i % kBlock;
        if (plan.variant == Variant::kRuns)
          loops.regions_one(to, caps[cap], region, n);
        else
          loops.regions_each(to, caps.at(column), region, n);
      }
      y.write(i, n, to, y_buffer);
    };
    if (direct) {
      for_each_stretch(plan, problem.layout, begin, end, kUnbounded, stretch);
      return;
    }
    for (int64_t block = begin; block < end; block += kBlock) {
      const int64_t block_end = std::min(end, block + kBlock);
      for_each_stretch(plan, problem.layout, block, block_end, kBlock, stretch);
      if (mask != nullptr) loops.pack(regions, block_end - block, mask + block / kElementsPerByte);
    }
  });
}

}  // namespace

void forward(const Problem& problem, const Operand& x, const BiasAndResidual& added, const Operand& y, uint8_t* mask) {
  if (problem.numel == 0) return;
  with_dtype_traits(problem.dtype, [&](auto traits) { forward_as<decltype(traits)>(problem, x, added, y, mask); });
}

}  // namespace dreluop::cpu
