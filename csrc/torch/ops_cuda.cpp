// The operators on CUDA devices.
#include "cuda/kernels.h"
#include "torch/cuda_device.h"
#include "torch/implement.h"

namespace dreluop {
namespace {

class Cuda {
 public:
  using Problem = cuda::Problem;
  static constexpr bool kCopiesCaps = true;

  explicit Cuda(const Tensor& on) : device_(on), like_(on) {}

  static Tensor fresh(Tensor t) { return t; }

  Problem problem() const {
    Problem problem;
    problem.multiprocessors = device_.multiprocessors();
    problem.stream = device_.stream();
    return problem;
  }

  void run(const Problem& problem, const Forward& pass) const {
    launch(cuda::forward_workspace(problem, pass), [&](void* memory) { return cuda::forward(problem, pass, memory); });
  }
  void run(const Problem& problem, const Backward& pass) const {
    launch(cuda::backward_workspace(problem, pass),
           [&](void* memory) { return cuda::backward(problem, pass, memory); });
  }
  void run(const Problem& problem, const Jvp& pass) const { OnDevice::check(cuda::jvp(problem, pass)); }
  void run(const Problem& problem, const Surrogate& pass) const { OnDevice::check(cuda::surrogate(problem, pass)); }
  void run(const Problem& problem, const Saturation& pass) const { OnDevice::check(cuda::saturation(problem, pass)); }
  void run(const Problem& problem, const BatchNorm& pass) const {
    launch(cuda::batch_norm_workspace(problem, pass),
           [&](void* memory) { return cuda::batch_norm(problem, pass, memory); });
  }
  void run(const Problem& problem, const BatchNormBackward& pass) const {
    launch(cuda::batch_norm_backward_workspace(problem, pass),
           [&](void* memory) { return cuda::batch_norm_backward(problem, pass, memory); });
  }

  void penalty(const std::vector<CapTensor>& caps, double balancer, Scalar result) const {
    launch(cuda::penalty_workspace(caps),
           [&](void* memory) { return cuda::penalty(caps, balancer, result, memory, device_.stream()); });
  }
  void penalty_backward(const std::vector<CapTensor>& caps, const std::vector<CapTensor>& gradients, double balancer,
                        Scalar grad) const {
    OnDevice::check(cuda::penalty_backward(caps, gradients, balancer, grad, device_.stream()));
  }

 private:
  // Runs a launcher with the workspace that it asked for.
  template <class Launcher>
  void launch(const cuda::Workspace& needs, const Launcher& launcher) const {
    if (needs.bytes == 0) return OnDevice::check(launcher(nullptr));
    const Tensor workspace = empty_contiguous({static_cast<int64_t>(needs.bytes)}, ScalarType::Byte, like_);
    OnDevice::check(launcher(workspace.mutable_data_ptr()));
  }

  OnDevice device_;
  Tensor like_;
};

}  // namespace
}  // namespace dreluop

// Not when the library loads but at torch's first use of CUDA: dreluop/backends/native/cuda.py probes the devices
// before.
extern "C" __attribute__((visibility("default"))) void dreluop_register_cuda() {
  using torch::stable::detail::StableLibrary;
  // Never freed: what is registered ends with it.
  static auto* const library =
      new StableLibrary(StableLibrary::Kind::IMPL, "dreluop", dreluop::kDeviceKey, __FILE__, __LINE__);
  static const bool registered =
      (dreluop::implement<dreluop::Cuda>(*library), dreluop::implement_batch_norm<dreluop::Cuda>(*library), true);
  (void)registered;
}
