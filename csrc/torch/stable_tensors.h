// Tensors of torch's stable ABI, for operators that serve every torch. In torch/aten_tensors.h are those of one torch.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/DeviceType.h>
#include <torch/headeronly/core/ScalarType.h>

#include <stdexcept>
#include <string>

#include "dreluop/dim_vector.h"

// What the last failed call of the C interface had to say; torch has it since 2.13. Weak, as older ones do not.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace dreluop {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The C interface drops the class of torch's exception, and before 2.13 its words too. "CUDA out of memory." is what
// those look for who try again with less; dreluop/out_of_memory.py makes torch's class of it.
[[noreturn]] inline void fail_to_allocate(const DimVector& sizes, ScalarType dtype, int32_t device_type) {
  const bool on_cuda = device_type == static_cast<int32_t>(torch::headeronly::DeviceType::CUDA);
  const char* what = torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace() : "";
  if (what != nullptr && *what != '\0') throw std::runtime_error(what);
  std::string shape;
  int64_t bytes = 8;  // of the widest type
  bool overflows = false;
  for (const int64_t size : sizes) {
    shape += (shape.empty() ? "" : ", ") + std::to_string(size);
    overflows |= __builtin_mul_overflow(bytes, size, &bytes);
  }
  if (overflows) throw std::runtime_error("dreluop: no result of shape (" + shape + ") can be addressed");
  throw std::runtime_error(std::string(on_cuda ? "CUDA out of memory. " : "") +
                           "dreluop could not allocate a result of shape (" + shape + "), " +
                           torch::headeronly::toString(dtype) + "; torch's own words are on the standard error stream");
}

inline int32_t device_type_of(const Tensor& t) {
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device_type));
  return device_type;
}

inline Tensor empty_strided(const DimVector& sizes, const DimVector& strides, ScalarType dtype, const Tensor& like) {
  const int32_t device_type = device_type_of(like);
  int32_t device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error = aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type, device_index, &handle);
  if (error != AOTI_TORCH_SUCCESS) fail_to_allocate(sizes, dtype, device_type);
  return Tensor(handle);
}

inline Tensor empty_by_torch(const Tensor& t) {
  try {
    return torch::stable::empty_like(t);
  } catch (const std::runtime_error&) {
    const auto sizes = t.sizes();
    fail_to_allocate(DimVector(sizes.data(), sizes.data() + sizes.size()), t.scalar_type(), device_type_of(t));
  }
}

inline void copy_values(Tensor& to, const Tensor& from) { torch::stable::copy_(to, from); }

inline bool same_device(const Tensor& a, const Tensor& b) {
  int32_t a_index = 0, b_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(a.get(), &a_index));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(b.get(), &b_index));
  return device_type_of(a) == device_type_of(b) && a_index == b_index;
}

}  // namespace dreluop
