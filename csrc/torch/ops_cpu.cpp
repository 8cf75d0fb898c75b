// The operators on the CPU.
#include "cpu/kernel_table.h"
#include "torch/huge_pages.h"
#include "torch/implement.h"

namespace dreluop {
namespace {

void parallel_for(int64_t n, int64_t grain, const cpu::Body& body) {
  if (n <= grain)
    body(0, n);
  else
    torch::stable::parallel_for(0, n, grain, body);
}

struct Cpu {
  using Problem = cpu::Problem;
  static constexpr bool kCopiesCaps = false;

  explicit Cpu(const Tensor&) {}

  static Tensor fresh(Tensor t) {
    advise_huge_pages(t.mutable_data_ptr(), t.numel() * size_of(dtype_of(t, "x")));
    return t;
  }

  Problem problem() const {
    Problem problem;
    problem.parallel_for = parallel_for;
    return problem;
  }

  void run(const Problem& problem, const Forward& pass) const { cpu::forward(problem, pass); }
  void run(const Problem& problem, const Backward& pass) const { cpu::backward(problem, pass); }
  void run(const Problem& problem, const Jvp& pass) const { cpu::jvp(problem, pass); }
  void run(const Problem& problem, const Surrogate& pass) const { cpu::surrogate(problem, pass); }
  void run(const Problem& problem, const Saturation& pass) const { cpu::saturation(problem, pass); }
  void run(const Problem& problem, const BatchNorm& pass) const { cpu::batch_norm(problem, pass); }
  void run(const Problem& problem, const BatchNormBackward& pass) const { cpu::batch_norm_backward(problem, pass); }

  void penalty(const std::vector<CapTensor>& caps, double balancer, Scalar result) const {
    cpu::penalty(caps, balancer, result);
  }
  void penalty_backward(const std::vector<CapTensor>& caps, const std::vector<CapTensor>& gradients, double balancer,
                        Scalar grad) const {
    cpu::penalty_backward(caps, gradients, balancer, grad);
  }
};

}  // namespace
}  // namespace dreluop

STABLE_TORCH_LIBRARY_IMPL(dreluop, CPU, m) {
  dreluop::implement<dreluop::Cpu>(m);
  dreluop::implement_batch_norm<dreluop::Cpu>(m);
}

// For the fast path.
extern "C" __attribute__((visibility("default"))) const void* dreluop_cpu_kernels() {
  using namespace dreluop;
  static const cpu::KernelTable table{.parallel_for = parallel_for, .forward = cpu::forward, .backward = cpu::backward};
  return &table;
}
