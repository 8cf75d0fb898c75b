#include "cpu/traverse.h"

namespace dreluop::cpu {
namespace {

template <class Traits>
void forward_as(const Problem& problem, const Forward& pass) {
  using T = typename Traits::Storage;
  const Primitives<Traits>& loops = primitives<Traits>();
  const Plan plan = plan_for(problem.numel(), problem.layout);
  const CapValues<Traits> caps(plan, problem, pass.cap);
  const CapValues<WideTraits<Traits>> bias(plan, problem, pass.bias);
  const TensorView x(problem, pass.x), y(problem, pass.y), residual(problem, pass.residual);
  const bool adds = pass.bias.data != nullptr || residual.present();

  parallel_over_blocks(problem, [&](int64_t begin, int64_t end) {
    T x_buffer[kBlock], y_buffer[kBlock], residual_buffer[kBlock];
    uint8_t regions[kBlock];
    const auto stretch = [&](const Stretch& s) {
      const T* from = x.read(s.i, s.n, x_buffer);
      T* to = y.target(s.i, s.n, y_buffer);
      if (adds) {
        loops.add(from, bias.at(s), residual.present() ? residual.read(s.i, s.n, residual_buffer) : nullptr, to, s.n);
        from = to;
      }
      loops.forward(from, caps.at(s), to, s.n, pass.zeroed);
      if (pass.mask != nullptr) loops.regions(to, caps.for_regions(s, pass.zeroed), regions + s.i % kBlock, s.n);
      y.write(s.i, s.n, to, y_buffer);
    };
    if (x.is_linear() && y.is_linear() && pass.mask == nullptr && !adds) {
      for_each_stretch(plan, problem.layout, begin, end, kUnbounded, stretch);
      return;
    }
    for (int64_t block = begin; block < end; block += kBlock) {
      const int64_t block_end = std::min(end, block + kBlock);
      for_each_stretch(plan, problem.layout, block, block_end, kBlock, stretch);
      if (pass.mask != nullptr) loops.pack(regions, block_end - block, pass.mask + block / kElementsPerByte);
    }
  });
}

}  // namespace

void forward(const Problem& problem, const Forward& pass) {
  if (pass.penalty.data != nullptr) {
    const TensorView caps(problem, pass.cap);
    store(pass.penalty, pass.balancer * sum_of_squares(pass.cap.dtype, caps, problem.distinct_caps()));
  }
  if (problem.numel() == 0) return;
  with_dtype_traits(problem.dtype, [&](auto traits) { forward_as<decltype(traits)>(problem, pass); });
}

}  // namespace dreluop::cpu
