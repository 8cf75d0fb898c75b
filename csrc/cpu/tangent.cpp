#include "cpu/traverse.h"

namespace dreluop::cpu {
namespace {

template <class Traits>
void tangent_as(const Problem& problem, const Operand& u, const void* v, const Saved& saved, const Operand& out) {
  using T = typename Traits::Storage;
  const Primitives<Traits>& loops = primitives<Traits>();
  const Plan plan = plan_for(problem.numel, problem.layout);
  const CapValues<T> caps(plan, problem.layout, static_cast<const T*>(problem.caps));
  const CapValues<T> at_cap(plan, problem.layout, static_cast<const T*>(v));

  parallel_over_blocks(problem, [&](int64_t begin, int64_t end) {
    T u_buffer[kBlock], out_buffer[kBlock];
    uint8_t regions[kBlock];
    for_each_stretch(plan, problem.layout, begin, end, kBlock, [&](int64_t i, int64_t n, int64_t cap, int64_t column) {
      regions_of<Traits>(plan, caps, saved, i, n, cap, column, regions);
      const T* from = u.read(i, n, u_buffer);
      T* to = out.target(i, n, out_buffer);
      if (v != nullptr && plan.variant == Variant::kColumns)
        loops.tangent_each(from, at_cap.at(column), regions, to, n);
      else
        loops.tangent_one(from, v != nullptr ? at_cap[cap] : Traits::zero(), regions, to, n);
      out.write(i, n, to, out_buffer);
    });
  });
}

}  // namespace

void tangent(const Problem& problem, const Operand& u, const void* v, const Saved& saved, const Operand& out) {
  if (problem.numel == 0) return;
  with_dtype_traits(problem.dtype, [&](auto traits) { tangent_as<decltype(traits)>(problem, u, v, saved, out); });
}

}  // namespace dreluop::cpu
