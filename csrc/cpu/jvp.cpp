#include "cpu/traverse.h"

namespace dreluop::cpu {
namespace {

template <class Traits>
void jvp_as(const Problem& problem, const Jvp& pass) {
  using T = typename Traits::Storage;
  const Primitives<Traits>& loops = primitives<Traits>();
  const Plan plan = plan_for(problem.numel(), problem.layout);
  const CapValues<Traits> caps(plan, problem, pass.cap), v(plan, problem, pass.v);
  const TensorView u(problem, pass.u), y(problem, pass.y), out(problem, pass.out);

  parallel_over_blocks(problem, [&](int64_t begin, int64_t end) {
    T u_buffer[kBlock], y_buffer[kBlock], out_buffer[kBlock];
    uint8_t regions[kBlock];
    for_each_stretch(plan, problem.layout, begin, end, kBlock, [&](const Stretch& s) {
      if (pass.mask != nullptr)
        loops.unpack(pass.mask, s.i, s.n, regions);
      else
        loops.regions(y.read(s.i, s.n, y_buffer), caps.for_regions(s, pass.zeroed), regions, s.n);
      T* to = out.target(s.i, s.n, out_buffer);
      loops.jvp(u.read(s.i, s.n, u_buffer), v.at(s), regions, to, s.n);
      out.write(s.i, s.n, to, out_buffer);
    });
  });
}

}  // namespace

void jvp(const Problem& problem, const Jvp& pass) {
  if (problem.numel() == 0) return;
  with_dtype_traits(problem.dtype, [&](auto traits) { jvp_as<decltype(traits)>(problem, pass); });
}

}  // namespace dreluop::cpu
