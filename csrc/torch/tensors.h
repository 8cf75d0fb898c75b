// Stable-ABI tensors as the torch-free kernels want them.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "dreluop/formats.h"
#include "dreluop/layout.h"

namespace dreluop {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

[[noreturn]] inline void fail(const std::string& message) { throw std::invalid_argument(message); }

inline Sizes sizes_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Sizes(sizes.data(), sizes.data() + sizes.size());
}

inline Sizes strides_of(const Tensor& t) {
  const auto strides = t.strides();
  return Sizes(strides.data(), strides.data() + strides.size());
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

inline Tensor empty_strided(const Sizes& sizes, const Sizes& strides, ScalarType dtype, const Tensor& like) {
  int32_t device_type = 0, device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type, device_index, &handle));
  return Tensor(handle);
}

inline Sizes dense_strides(const Sizes& sizes, const Sizes& order) {
  Sizes strides(sizes.size(), 1);
  int64_t next = 1;
  for (size_t i = order.size(); i-- > 0;) {
    strides[order[i]] = next;
    next *= std::max<int64_t>(sizes[order[i]], 1);
  }
  return strides;
}

inline Tensor empty_contiguous(const Sizes& sizes, ScalarType dtype, const Tensor& like) {
  Sizes order(sizes.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  return empty_strided(sizes, dense_strides(sizes, order), dtype, like);
}

inline Tensor nothing(ScalarType dtype, const Tensor& like) { return empty_contiguous({0}, dtype, like); }

inline bool same_device(const Tensor& a, const Tensor& b) {
  int32_t a_type = 0, b_type = 0, a_index = 0, b_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(a.get(), &a_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(b.get(), &b_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(a.get(), &a_index));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(b.get(), &b_index));
  return a_type == b_type && a_index == b_index;
}

}  // namespace dreluop
