// Stable-ABI tensors as the torch-free kernels want them.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/DeviceType.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "dreluop/dtype_traits.h"
#include "dreluop/layout.h"

// What the last failed call of the C interface had to say; torch has it since 2.13. Weak, as older ones do not.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace dreluop {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

[[noreturn]] inline void fail(const std::string& message) { throw std::invalid_argument(message); }

inline DimVector sizes_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return DimVector(sizes.data(), sizes.data() + sizes.size());
}

inline DimVector strides_of(const Tensor& t) {
  const auto strides = t.strides();
  return DimVector(strides.data(), strides.data() + strides.size());
}

inline DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      fail(std::string(name) + ": got dtype " + torch::headeronly::toString(t.scalar_type()) +
           "; expected float32, float64, float16 or bfloat16");
  }
}

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

inline DimVector dense_strides(const DimVector& sizes, const DimVector& order) {
  DimVector strides(sizes.size(), 1);
  int64_t next = 1;
  for (size_t i = order.size(); i-- > 0;) {
    strides[order[i]] = next;
    next *= std::max<int64_t>(sizes[order[i]], 1);
  }
  return strides;
}

inline DimVector contiguous_strides(const DimVector& sizes) {
  DimVector order(sizes.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  return dense_strides(sizes, order);
}

inline Tensor empty_contiguous(const DimVector& sizes, ScalarType dtype, const Tensor& like) {
  return empty_strided(sizes, contiguous_strides(sizes), dtype, like);
}

inline Tensor contiguous_like(const Tensor& t) { return empty_contiguous(sizes_of(t), t.scalar_type(), t); }

inline Tensor nothing(ScalarType dtype, const Tensor& like) { return empty_contiguous({0}, dtype, like); }

inline bool same_device(const Tensor& a, const Tensor& b) {
  int32_t a_index = 0, b_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(a.get(), &a_index));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(b.get(), &b_index));
  return device_type_of(a) == device_type_of(b) && a_index == b_index;
}

}  // namespace dreluop
