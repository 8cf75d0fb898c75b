// The CUDA device that a call runs on: its guard, and torch's current stream.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <atomic>

#include "cuda/kernels.h"
#include "cuda/probe.h"
#include "torch/tensors.h"

// In libtorch_cuda only. Weak, so that the library also loads under a torch for the CPU, where nobody calls it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace dreluop {

constexpr const char* kDeviceKey = "CUDA";

class OnDevice {
 public:
  explicit OnDevice(const Tensor& on) : index_(index_of(on)), guard_(index_) {
    check_gpu(index_);
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream_));
    cuda::Status status;
    multiprocessors_ = cuda::multiprocessors(index_, &status);
    check(status);
  }

  void* stream() const { return stream_; }
  int multiprocessors() const { return multiprocessors_; }

  static void check(const cuda::Status& status) {
    if (!status.ok()) throw std::runtime_error(std::string(status.kernel) + ": " + cuda::error_text(status.error));
  }

 private:
  // Beside a GPU that can run the kernels there may be one that cannot.
  static void check_gpu(int32_t index) {
    static std::array<std::atomic<bool>, 64> fine{};
    const bool cached = index >= 0 && index < static_cast<int32_t>(fine.size());
    if (cached && fine[index]) return;
    const std::string reason = cuda::unavailable_reason(index, DRELUOP_CUDA_ARCHS);
    if (!reason.empty()) throw std::runtime_error("CUDA device " + std::to_string(index) + ": " + reason);
    if (cached) fine[index] = true;
  }

  static int32_t index_of(const Tensor& t) {
    int32_t index = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &index));
    return index;
  }

  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
  int multiprocessors_ = 1;
};

}  // namespace dreluop
