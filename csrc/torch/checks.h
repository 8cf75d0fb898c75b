// What both devices check in the arguments of an operator, and read from them.
#pragma once

#include <optional>
#include <string>

#include "dreluop/semantics.h"
#include "torch/tensors.h"

namespace dreluop {

inline void check_order(const DimVector& order, size_t rank) {
  DimVector sorted = order;
  std::sort(sorted.begin(), sorted.end());
  bool permutation = sorted.size() == rank;
  for (size_t d = 0; permutation && d < rank; ++d) permutation = sorted[d] == static_cast<int64_t>(d);
  if (!permutation)
    fail("order: got " + to_string(order) + "; expected each of " + std::to_string(rank) + " dimensions once");
}

inline void check_device(const Tensor& t, const char* name, const Tensor& like, const char* like_name) {
  if (!same_device(t, like)) fail(std::string(name) + ": got a tensor on another device than " + like_name);
}

inline void check_sizes(const Tensor& t, const char* name, const Tensor& like, const char* whose) {
  if (sizes_of(t) != sizes_of(like))
    fail(std::string(name) + ": got shape " + to_string(sizes_of(t)) + "; expected " + whose + ", " +
         to_string(sizes_of(like)));
}

inline void check_dtype(const Tensor& t, const char* name, const Tensor& like, const char* whose) {
  using torch::headeronly::toString;
  if (t.scalar_type() != like.scalar_type())
    fail(std::string(name) + ": got dtype " + toString(t.scalar_type()) + "; expected " + whose + ", " +
         toString(like.scalar_type()));
}

inline void check_one_element(const Tensor& t, const char* name) {
  if (t.numel() != 1) fail(std::string(name) + ": got shape " + to_string(sizes_of(t)) + "; expected one element");
}

inline void check_writable(const Tensor& x) {
  if (overlaps_itself(sizes_of(x), strides_of(x)))
    fail("inplace: x of shape " + to_string(sizes_of(x)) + " and strides " + to_string(strides_of(x)) +
         " has several elements at one address; use inplace=False");
}

inline Zeroed check_zeroed(int64_t zeroed) {
  if (zeroed < kZeroNothing || zeroed > kZeroBoth)
    fail("zeroed: got " + std::to_string(zeroed) + "; expected one of 0 to 3");
  return static_cast<Zeroed>(zeroed);
}

inline ScalarType penalty_dtype(const Tensor& cap) {
  return cap.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline int64_t mask_size(int64_t numel) { return (numel + kElementsPerByte - 1) / kElementsPerByte; }

// x's shape traversed in the given order, with the caps (and the bias) that its elements use.
struct Geometry {
  Geometry(const Tensor& x, const char* name, const Tensor& cap, int64_t dim, const DimVector& order,
           const std::optional<Tensor>& bias = std::nullopt)
      : dtype(dtype_of(x, name)), sizes(sizes_of(x)) {
    dtype_of(cap, "cap");
    check_device(cap, "cap", x, name);
    if (bias.has_value()) {
      dtype_of(*bias, "bias");
      check_device(*bias, "bias", x, name);
      traversal = traversal_with_bias(sizes, order, sizes_of(cap), sizes_of(*bias), dim);
    } else {
      traversal = traversal_of(sizes, order, sizes_of(cap), dim);
    }
  }

  int64_t numel() const { return product(sizes); }

  // The dimensions of a cap-shaped tensor in the order in which the caps are met.
  DimVector cap_order(size_t rank) const {
    DimVector order;
    if (traversal.granularity == Granularity::kNeuron) {
      for (const int64_t d : traversal.order)
        if (d != 0) order.push_back(d - 1);
    } else {
      for (size_t d = 0; d < rank; ++d) order.push_back(static_cast<int64_t>(d));
    }
    return order;
  }

  // Elements of one sample (dim 0) that lie together in traversal order.
  int64_t sample_inner() const {
    int64_t inner = 1;
    for (size_t i = traversal.order.size(); i-- > 0 && traversal.order[i] != 0;) inner *= sizes[traversal.order[i]];
    return inner;
  }

  DType dtype;
  DimVector sizes;
  Traversal traversal;
};

inline void check_residual(const Tensor& residual, const Tensor& x) {
  check_device(residual, "residual", x, "x");
  check_sizes(residual, "residual", x, "x's");
  check_dtype(residual, "residual", x, "x's");
}

// What backward and jvp need to know of `saved`: whether it is the packed mask, and the order of its elements.
struct SavedInfo {
  SavedInfo(const Tensor& like, const char* like_name, const Tensor& saved, const DimVector& mask_order)
      : is_mask(saved.scalar_type() == ScalarType::Byte) {
    check_device(saved, "saved", like, like_name);
    const DimVector sizes = sizes_of(like);
    if (is_mask) {
      check_order(mask_order, sizes.size());
      if (saved.dim() != 1 || saved.numel() != mask_size(product(sizes)) || !saved.is_contiguous())
        fail("saved: got a mask of shape " + to_string(sizes_of(saved)) + "; expected (" +
             std::to_string(mask_size(product(sizes))) + ",)");
      order = mask_order;
      return;
    }
    check_sizes(like, like_name, saved, "that of the saved output");
    check_dtype(like, like_name, saved, "that of the saved output");
    order = memory_order(strides_of(saved));
  }

  // Packed regions lie in traversal order, which `order` must be: reading them in another would be silently wrong.
  void check_traversal(const Geometry& geometry) const {
    if (!is_mask || geometry.numel() == 0) return;
    DimVector expected, given;
    for (const int64_t d : geometry.traversal.order)
      if (geometry.sizes[d] != 1) expected.push_back(d);
    for (const int64_t d : order)
      if (geometry.sizes[d] != 1) given.push_back(d);
    if (expected != given)
      fail("order: got " + to_string(order) + "; a mask for this x and cap lies in the order " +
           to_string(geometry.traversal.order));
  }

  bool is_mask;
  DimVector order;
};

inline void check_tangent_of_cap(const Tensor& v, const Tensor& cap, const Tensor& u) {
  check_sizes(v, "v", cap, "the cap's");
  check_device(v, "v", u, "u");
}

// The soft form needs x itself: neither the mask nor y tells where x lies beside the cap.
inline void check_width(const Tensor& width, const Tensor& cap, const SavedInfo& info, const Tensor& grad) {
  check_sizes(width, "width", cap, "the cap's");
  check_device(width, "width", grad, "grad");
  if (info.is_mask) fail("saved: got a mask beside a width; expected the activation before the cap");
}

inline void check_has_samples(const Tensor& x) {
  if (x.dim() == 0) fail("x: got 0 dimensions; expected at least one, the sample");
}

// Off, inside and capped, per cap.
inline DimVector counts_shape(const Tensor& cap) {
  DimVector shape{3};
  for (const int64_t size : sizes_of(cap)) shape.push_back(size);
  return shape;
}

// The dtype of their penalty.
inline ScalarType check_caps(const std::vector<Tensor>& caps) {
  if (caps.empty()) fail("caps: got no tensor; expected at least one");
  ScalarType dtype = ScalarType::Float;
  for (const Tensor& cap : caps) {
    dtype_of(cap, "cap");
    check_device(cap, "caps", caps[0], "the first of them");
    if (cap.scalar_type() == ScalarType::Double) dtype = ScalarType::Double;
  }
  return dtype;
}

}  // namespace dreluop
