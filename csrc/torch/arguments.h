// What both devices check in the arguments of an operator, and read from them.
#pragma once

#include <optional>
#include <string>

#include "dreluop/semantics.h"
#include "torch/tensors.h"

namespace dreluop {

inline void check_order(const Sizes& order, size_t rank) {
  Sizes sorted = order;
  std::sort(sorted.begin(), sorted.end());
  bool permutation = sorted.size() == rank;
  for (size_t d = 0; permutation && d < rank; ++d) permutation = sorted[d] == static_cast<int64_t>(d);
  if (!permutation)
    fail("order: got " + to_string(order) + "; expected each of " + std::to_string(rank) + " dimensions once");
}

inline void check_device(const Tensor& t, const char* name, const Tensor& like, const char* like_name) {
  if (!same_device(t, like)) fail(std::string(name) + ": got a tensor on another device than " + like_name);
}

// As autograd hands it over: at most one value, on any device.
inline void check_one_element(const Tensor& t, const char* name) {
  if (t.numel() != 1) fail(std::string(name) + ": got shape " + to_string(sizes_of(t)) + "; expected one element");
}

inline void check_writable(const Tensor& x) {
  if (overlaps_itself(sizes_of(x), strides_of(x)))
    fail("inplace: x of shape " + to_string(sizes_of(x)) + " and strides " + to_string(strides_of(x)) +
         " has several elements at one address; use inplace=False");
}

inline ScalarType penalty_dtype(const Tensor& cap) {
  return cap.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline int64_t code_size(int64_t numel) { return (numel + kCodesPerByte - 1) / kCodesPerByte; }

// x's shape walked in the given order, with the caps (and the bias) that its elements use.
struct Geometry {
  Geometry(const Tensor& x, const char* name, const Tensor& cap, int64_t dim, const Sizes& order,
           const std::optional<Tensor>& bias = std::nullopt)
      : dtype(dtype_of(x, name)), sizes(sizes_of(x)) {
    dtype_of(cap, "cap");
    check_device(cap, "cap", x, name);
    if (bias.has_value()) {
      dtype_of(*bias, "bias");
      check_device(*bias, "bias", x, name);
      walk = walk_with_bias(sizes, order, sizes_of(cap), sizes_of(*bias), dim);
    } else {
      walk = walk_of(sizes, order, sizes_of(cap), dim);
    }
  }

  int64_t numel() const { return product(sizes); }

  // The dimensions of a cap-shaped tensor in the order in which the caps are met.
  Sizes cap_order(size_t rank) const {
    Sizes order;
    if (walk.granularity == Granularity::kNeuron) {
      for (const int64_t d : walk.order)
        if (d != 0) order.push_back(d - 1);
    } else {
      for (size_t d = 0; d < rank; ++d) order.push_back(static_cast<int64_t>(d));
    }
    return order;
  }

  DType dtype;
  Sizes sizes;
  Walk walk;
};

inline void check_residual(const Tensor& residual, const Tensor& x) {
  check_device(residual, "residual", x, "x");
  if (sizes_of(residual) != sizes_of(x))
    fail("residual: got shape " + to_string(sizes_of(residual)) + "; expected x's, " + to_string(sizes_of(x)));
  if (residual.scalar_type() != x.scalar_type())
    fail(std::string("residual: got dtype ") + torch::headeronly::toString(residual.scalar_type()) +
         "; expected x's, " + torch::headeronly::toString(x.scalar_type()));
}

// What backward and tangent need to know of `saved`: whether it is a code, and the order of its elements.
struct Kept {
  Kept(const Tensor& like, const char* like_name, const Tensor& saved, const Sizes& code_order)
      : is_code(saved.scalar_type() == ScalarType::Byte) {
    check_device(saved, "saved", like, like_name);
    const Sizes sizes = sizes_of(like);
    if (is_code) {
      check_order(code_order, sizes.size());
      if (saved.dim() != 1 || saved.numel() != code_size(product(sizes)) || !saved.is_contiguous())
        fail("saved: got a code of shape " + to_string(sizes_of(saved)) + "; expected (" +
             std::to_string(code_size(product(sizes))) + ",)");
      order = code_order;
      return;
    }
    if (sizes_of(saved) != sizes)
      fail(std::string(like_name) + ": got shape " + to_string(sizes) + "; expected that of the saved output, " +
           to_string(sizes_of(saved)));
    if (saved.scalar_type() != like.scalar_type())
      fail(std::string(like_name) + ": got dtype " + torch::headeronly::toString(like.scalar_type()) +
           "; expected that of the saved output, " + torch::headeronly::toString(saved.scalar_type()));
    order = memory_order(strides_of(saved));
  }

  // Codes lie in walking order, which `order` must be: reading them in another would be silently wrong.
  void check_walk(const Geometry& geometry) const {
    if (!is_code || geometry.numel() == 0) return;
    Sizes walked, given;
    for (const int64_t d : geometry.walk.order)
      if (geometry.sizes[d] != 1) walked.push_back(d);
    for (const int64_t d : order)
      if (geometry.sizes[d] != 1) given.push_back(d);
    if (walked != given)
      fail("order: got " + to_string(order) + "; a code for this x and cap lies in the order " +
           to_string(geometry.walk.order));
  }

  bool is_code;
  Sizes order;
};

}  // namespace dreluop
