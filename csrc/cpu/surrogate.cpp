#include "cpu/traverse.h"

namespace dreluop::cpu {
namespace {

template <class Traits>
void straight_through(const Problem& problem, const Operand& grad, const Saved& saved, const Operand& dx) {
  using T = typename Traits::Storage;
  const Primitives<Traits>& loops = primitives<Traits>();
  parallel_over_blocks(problem, [&](int64_t begin, int64_t end) {
    T grad_buffer[kBlock], y_buffer[kBlock], dx_buffer[kBlock];
    uint8_t regions[kBlock];
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t n = std::min(kBlock, end - i);
      const T* g = grad.read(i, n, grad_buffer);
      T* to = dx.target(i, n, dx_buffer);
      if (saved.mask != nullptr) {
        loops.unpack(saved.mask, i, n, regions);
        loops.pass_regions(g, regions, to, n);
      } else {
        loops.pass(g, saved.y->read(i, n, y_buffer), to, n);
      }
      dx.write(i, n, to, dx_buffer);
    }
  });
}

template <class Traits>
void soft(const Problem& problem, const Operand& grad, const Operand& x, const void* widths, const Operand& dx) {
  using T = typename Traits::Storage;
  const Primitives<Traits>& loops = primitives<Traits>();
  const Plan plan = plan_for(problem.numel, problem.layout);
  const CapValues<T> caps(plan, problem.layout, static_cast<const T*>(problem.caps));
  const CapValues<Wide<Traits>> width(plan, problem.layout, static_cast<const Wide<Traits>*>(widths));

  parallel_over_blocks(problem, [&](int64_t begin, int64_t end) {
    T grad_buffer[kBlock], x_buffer[kBlock], dx_buffer[kBlock];
    for_each_stretch(plan, problem.layout, begin, end, kBlock, [&](int64_t i, int64_t n, int64_t cap, int64_t column) {
      const T* g = grad.read(i, n, grad_buffer);
      const T* from = x.read(i, n, x_buffer);
      T* to = dx.target(i, n, dx_buffer);
      if (plan.variant == Variant::kRuns)
        loops.soften_one(g, from, caps[cap], width[cap], to, n);
      else
        loops.soften_each(g, from, caps.at(column), width.at(column), to, n);
      dx.write(i, n, to, dx_buffer);
    });
  });
}

}  // namespace

void surrogate(const Problem& problem, const Operand& grad, const Saved& saved, const void* widths, const Operand& dx) {
  if (problem.numel == 0) return;
  with_dtype_traits(problem.dtype, [&](auto traits) {
    if (widths == nullptr)
      straight_through<decltype(traits)>(problem, grad, saved, dx);
    else
      soft<decltype(traits)>(problem, grad, *saved.y, widths, dx);
  });
}

}  // namespace dreluop::cpu
