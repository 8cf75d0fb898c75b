// One call of an operator, from torch's tensors to what the kernels receive.
#pragma once

#include "dreluop/passes.h"
#include "torch/checks.h"

namespace dreluop {

inline void* data_of(const Tensor& t) { return const_cast<void*>(t.const_data_ptr()); }

inline DimVector in_order(const DimVector& values, const DimVector& order) {
  DimVector result;
  for (const int64_t d : order) result.push_back(values[d]);
  return result;
}

inline Scalar scalar(const Tensor& t, const char* name) {
  check_one_element(t, name);
  return {data_of(t), dtype_of(t, name)};
}

// As torch.empty_like, without the dispatcher where the strides can simply be taken over.
inline Tensor empty_as(const Tensor& t) {
  const DimVector sizes = sizes_of(t), strides = strides_of(t);
  if (t.numel() > 0 && strides == dense_strides(sizes, memory_order(strides)))
    return empty_strided(sizes, strides, t.scalar_type(), t);
  return empty_by_torch(t);
}

// A gradient or tangent of x: with the strides of the saved output, or dense in the order of the mask.
inline Tensor empty_as_saved(const SavedInfo& info, const Tensor& like, const Tensor& saved) {
  if (!info.is_mask) return empty_as(saved);
  const DimVector sizes = sizes_of(like);
  return empty_strided(sizes, dense_strides(sizes, info.order), like.scalar_type(), like);
}

// Keeps the sizes and strides that the kernels are given pointers to.
template <class Device>
class Call : public Geometry {
 public:
  Call(const Tensor& x, const char* name, const Tensor& cap, int64_t dim, const DimVector& order,
       const std::optional<Tensor>& bias = std::nullopt)
      : Geometry(x, name, cap, dim, order, bias), device_(x), problem_(device_.problem()) {
    traversed_ = in_order(sizes, traversal.order);
    // A single cap under a bias per channel has the dimension of the bias.
    cap_sizes_ =
        traversal.shared_cap ? DimVector{traversal.layout.caps} : in_order(sizes_of(cap), cap_order(cap.dim()));
    problem_.dtype = dtype;
    problem_.rank = static_cast<int>(traversed_.size());
    problem_.sizes = traversed_.data();
    problem_.layout = traversal.layout;
    problem_.cap_rank = static_cast<int>(cap_sizes_.size());
    problem_.cap_sizes = cap_sizes_.data();
    problem_.shared_cap = traversal.shared_cap;
  }
  Call(const Call&) = delete;

  Operand operand(const Tensor& t) { return {data_of(t), keep(in_order(strides_of(t), traversal.order))}; }
  // For writing: before any pointer to read the same tensor is taken, as a copy-on-write one moves.
  Operand output(const Tensor& t) { return {t.mutable_data_ptr(), keep(in_order(strides_of(t), traversal.order))}; }

  // A tensor of the cap's shape, or of a single cap where the layout counts channels.
  PerCap cap(const Tensor& t, const char* name) {
    if (!traversal.shared_cap) return per_channel(t, name);
    return {data_of(t), dtype_of(t, name), keep({0})};
  }
  PerCap per_channel(const Tensor& t, const char* name) {
    return {data_of(t), dtype_of(t, name), keep(in_order(strides_of(t), cap_order(t.dim())))};
  }
  // The same for reading, as the device reads fast.
  PerCap readable_cap(const Tensor& t, const char* name) { return cap(readable(t), name); }
  PerCap readable_per_channel(const Tensor& t, const char* name) { return per_channel(readable(t), name); }

  // The strides of a contiguous tensor of the cap's shape, as the caps are met.
  const int64_t* contiguous_cap_strides(const Tensor& cap) {
    return keep(in_order(contiguous_strides(sizes_of(cap)), cap_order(cap.dim())));
  }

  // Tells a pass where the saved output or mask lies.
  template <class Pass>
  void give_saved(Pass* pass, const SavedInfo& info, const Tensor& saved) {
    info.check_traversal(*this);
    if (info.is_mask)
      pass->mask = static_cast<const uint8_t*>(saved.const_data_ptr());
    else
      pass->y = operand(saved);
  }

  template <class Pass>
  void run(const Pass& pass) const {
    device_.run(problem_, pass);
  }

 private:
  // Neuron caps that do not lie as x does (channels-last) are few beside x, and copied for a GPU: where they are, every
  // element of x would read far from the one before.
  Tensor readable(const Tensor& t) {
    const DimVector shape = sizes_of(t);
    if (!Device::kCopiesCaps || traversal.granularity != Granularity::kNeuron || t.numel() == 0) return t;
    const DimVector strides = dense_strides(shape, cap_order(shape.size()));
    if (strides == strides_of(t)) return t;
    Tensor copy = empty_strided(shape, strides, t.scalar_type(), t);
    copy_values(copy, t);
    copies_.push_back(copy);
    return copy;
  }

  const int64_t* keep(const DimVector& strides) {
    if (array_count_ == kMostArrays) fail("strides: more tensors in a call than it has scratch for");
    arrays_[array_count_] = strides;
    return arrays_[array_count_++].data();
  }

  static constexpr int kMostArrays = 12;
  const Device device_;
  typename Device::Problem problem_;
  DimVector traversed_, cap_sizes_;
  DimVector arrays_[kMostArrays];
  std::vector<Tensor> copies_;
  int array_count_ = 0;
};

// Caps by themselves, as the kernels receive them.
struct CapList {
  explicit CapList(const std::vector<Tensor>& caps) : sizes(caps.size()), strides(caps.size()) {
    for (size_t i = 0; i < caps.size(); ++i) {
      sizes[i] = sizes_of(caps[i]);
      strides[i] = strides_of(caps[i]);
      tensors.push_back({data_of(caps[i]), dtype_of(caps[i], "cap"), static_cast<int>(sizes[i].size()), sizes[i].data(),
                         strides[i].data()});
    }
  }
  std::vector<DimVector> sizes, strides;
  std::vector<CapTensor> tensors;
};

}  // namespace dreluop
