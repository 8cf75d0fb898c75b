// Tensors as the torch-free kernels want them: of the stable ABI, or where DRELUOP_ATEN is defined of one torch.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "dreluop/dtype_traits.h"
#include "dreluop/layout.h"
#ifdef DRELUOP_ATEN
#include "torch/aten_tensors.h"
#else
#include "torch/stable_tensors.h"
#endif

namespace dreluop {

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

}  // namespace dreluop
