// Tensors in the C++ of one torch, without the C functions of the stable ABI between: for the fast path, on a CPU.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <exception>

#include "dreluop/dim_vector.h"

namespace dreluop {

using at::Tensor;
using c10::ScalarType;

// The operator of the stable ABI fails again, and has the words.
struct NoMemory : std::exception {};

inline Tensor empty_strided(const DimVector& sizes, const DimVector& strides, ScalarType dtype, const Tensor&) {
  try {
    return at::detail::empty_strided_cpu({sizes.data(), sizes.size()}, {strides.data(), strides.size()}, dtype);
  } catch (const c10::Error&) {
    throw NoMemory();
  }
}

inline Tensor empty_by_torch(const Tensor& t) {
  try {
    return at::empty_like(t);
  } catch (const c10::Error&) {
    throw NoMemory();
  }
}

inline void copy_values(Tensor& to, const Tensor& from) { to.copy_(from); }

inline bool same_device(const Tensor& a, const Tensor& b) { return a.device() == b.device(); }

}  // namespace dreluop
