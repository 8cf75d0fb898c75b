// Stands in for csrc/torch/cuda_device.h: the CUDA operators on CPU tensors, their kernels run by the host shim.
#pragma once

#include "cuda/kernels.h"
#include "torch/tensors.h"

namespace dreluop {

constexpr const char* kDeviceKey = "CPU";

class OnDevice {
 public:
  explicit OnDevice(const Tensor&) {}

  void* stream() const { return nullptr; }
  int multiprocessors() const { return 4; }

  static void check(const cuda::Status& status) {
    if (!status.ok()) throw std::runtime_error(std::string(status.kernel) + ": error " + std::to_string(status.error));
  }
};

}  // namespace dreluop
