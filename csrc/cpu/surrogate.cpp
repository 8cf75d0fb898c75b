#include "cpu/traverse.h"

namespace dreluop::cpu {
namespace {

template <class Traits>
void straight_through(const Problem& problem, const Surrogate& pass) {
  using T = typename Traits::Storage;
  const Primitives<Traits>& loops = primitives<Traits>();
  const TensorView grad(problem, pass.grad), y(problem, pass.y), dx(problem, pass.dx);

  parallel_over_blocks(problem, [&](int64_t begin, int64_t end) {
    T grad_buffer[kBlock], y_buffer[kBlock], dx_buffer[kBlock];
    uint8_t regions[kBlock];
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t n = std::min(kBlock, end - i);
      const T* g = grad.read(i, n, grad_buffer);
      T* to = dx.target(i, n, dx_buffer);
      if (pass.mask != nullptr) {
        loops.unpack(pass.mask, i, n, regions);
        loops.pass_regions(g, regions, to, n);
      } else {
        loops.pass(g, y.read(i, n, y_buffer), to, n);
      }
      dx.write(i, n, to, dx_buffer);
    }
  });
}

template <class Traits>
void soft(const Problem& problem, const Surrogate& pass) {
  using T = typename Traits::Storage;
  const Primitives<Traits>& loops = primitives<Traits>();
  const Plan plan = plan_for(problem.numel(), problem.layout);
  const CapValues<Traits> caps(plan, problem, pass.cap);
  const CapValues<WideTraits<Traits>> widths(plan, problem, pass.width);
  const TensorView grad(problem, pass.grad), x(problem, pass.y), dx(problem, pass.dx);

  parallel_over_blocks(problem, [&](int64_t begin, int64_t end) {
    T grad_buffer[kBlock], x_buffer[kBlock], dx_buffer[kBlock];
    for_each_stretch(plan, problem.layout, begin, end, kBlock, [&](const Stretch& s) {
      const T* g = grad.read(s.i, s.n, grad_buffer);
      T* to = dx.target(s.i, s.n, dx_buffer);
      loops.soften(g, x.read(s.i, s.n, x_buffer), caps.at(s), widths.at(s), to, s.n);
      dx.write(s.i, s.n, to, dx_buffer);
    });
  });
}

}  // namespace

void surrogate(const Problem& problem, const Surrogate& pass) {
  if (problem.numel() == 0) return;
  with_dtype_traits(problem.dtype, [&](auto traits) {
    if (pass.width.data == nullptr)
      straight_through<decltype(traits)>(problem, pass);
    else
      soft<decltype(traits)>(problem, pass);
  });
}

}  // namespace dreluop::cpu
