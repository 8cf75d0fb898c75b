// CUDA kernels for the operators that dreluop/ops/schemas.py declares.
#include <tuple>

#include "cuda/kernels.h"
#include "torch/arguments.h"
#include "torch/cuda_device.h"

namespace dreluop {
namespace {

DimVector in_order(const DimVector& values, const DimVector& order) {
  DimVector result;
  for (const int64_t d : order) result.push_back(values[d]);
  return result;
}

void* data_of(const Tensor& t) { return const_cast<void*>(t.const_data_ptr()); }

// One call, as the kernels receive it. Keeps the sizes and strides that the kernels are given pointers to.
class Call : public Geometry {
 public:
  Call(const Tensor& x, const char* name, const Tensor& cap, int64_t dim, const DimVector& order,
       const std::optional<Tensor>& bias = std::nullopt)
      : Geometry(x, name, cap, dim, order, bias), device_(x), like_(x) {
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
    problem_.multiprocessors = device_.multiprocessors();
    problem_.stream = device_.stream();
  }
  Call(const Call&) = delete;

  const cuda::Problem& problem() const { return problem_; }

  cuda::Operand operand(const Tensor& t) { return {data_of(t), keep(in_order(strides_of(t), traversal.order))}; }
  // For writing: before any pointer to read the same tensor is taken, as a copy-on-write one moves.
  cuda::Operand output(const Tensor& t) {
    return {t.mutable_data_ptr(), keep(in_order(strides_of(t), traversal.order))};
  }

  // A cap, bias or tangent as it can be read fast. Neuron caps that do not lie as x does (channels-last) are few beside
  // x and copied: where they are, every element of x would read far from the one before.
  Tensor readable(const Tensor& t) {
    const DimVector shape = sizes_of(t);
    if (traversal.granularity != Granularity::kNeuron || t.numel() == 0) return t;
    const DimVector strides = dense_strides(shape, cap_order(shape.size()));
    if (strides == strides_of(t)) return t;
    Tensor copy = empty_strided(shape, strides, t.scalar_type(), t);
    torch::stable::copy_(copy, t);
    copies_.push_back(copy);
    return copy;
  }

  // A tensor of the cap's shape, or of a single cap where the layout counts channels.
  cuda::PerCap cap(const Tensor& t, const char* name) {
    if (traversal.shared_cap) return {data_of(t), dtype_of(t, name), keep({0})};
    return per_channel(t, name);
  }
  cuda::PerCap per_channel(const Tensor& t, const char* name) {
    return {data_of(t), dtype_of(t, name), keep(in_order(strides_of(t), cap_order(t.dim())))};
  }

  // The strides of a contiguous tensor of the cap's shape, as the caps are met.
  const int64_t* contiguous_cap_strides(const Tensor& cap) {
    const DimVector shape = sizes_of(cap);
    DimVector order(shape.size());
    std::iota(order.begin(), order.end(), int64_t{0});
    return keep(in_order(dense_strides(shape, order), cap_order(shape.size())));
  }

  // Runs a launcher with the workspace that it asked for.
  template <class Launcher>
  void run(const cuda::Workspace& needs, const Launcher& launcher) const {
    if (needs.bytes == 0) return OnDevice::check(launcher(nullptr));
    const Tensor workspace = empty_contiguous({static_cast<int64_t>(needs.bytes)}, ScalarType::Byte, like_);
    OnDevice::check(launcher(workspace.mutable_data_ptr()));
  }

 private:
  const int64_t* keep(const DimVector& strides) {
    if (array_count_ == kMostArrays) fail("strides: more tensors in a call than it has scratch for");
    arrays_[array_count_] = strides;
    return arrays_[array_count_++].data();
  }

  static constexpr int kMostArrays = 8;
  OnDevice device_;
  Tensor like_;
  DimVector traversed_, cap_sizes_;
  DimVector arrays_[kMostArrays];
  std::vector<Tensor> copies_;
  int array_count_ = 0;
  cuda::Problem problem_;
};

cuda::Scalar scalar(const Tensor& t, const char* name) {
  check_one_element(t, name);
  const DType dtype = dtype_of(t, name);
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64)
    fail(std::string(name) + ": got dtype " + torch::headeronly::toString(t.scalar_type()) +
         "; expected float32 or float64");
  return {data_of(t), dtype};
}

void run_forward(Call& call, const Tensor& x, const Tensor& cap, const std::optional<Tensor>& bias,
                 const std::optional<Tensor>& residual, const Tensor& y, uint8_t* mask, const Tensor* penalty,
                 double balancer) {
  cuda::Forward pass;
  pass.y = call.output(y);
  pass.x = call.operand(x);
  pass.cap = call.cap(call.readable(cap), "cap");
  if (residual.has_value()) pass.residual = call.operand(*residual);
  if (bias.has_value()) pass.bias = call.per_channel(call.readable(*bias), "bias");
  pass.mask = mask;
  if (penalty != nullptr) {
    pass.penalty = scalar(*penalty, "penalty");
    pass.balancer = balancer;
  }
  call.run(cuda::forward_workspace(call.problem(), pass),
           [&](void* workspace) { return cuda::forward(call.problem(), pass, workspace); });
}

Tensor capped_relu(const Tensor& x, const Tensor& cap, int64_t dim, const std::optional<Tensor>& bias,
                   const std::optional<Tensor>& residual) {
  Call call(x, "x", cap, dim, memory_order(strides_of(x)), bias);
  if (residual.has_value()) check_residual(*residual, x);
  const Tensor y = empty_as(x);
  run_forward(call, x, cap, bias, residual, y, nullptr, nullptr, 0);
  return y;
}

void capped_relu_(const Tensor& x, const Tensor& cap, int64_t dim, const std::optional<Tensor>& bias,
                  const std::optional<Tensor>& residual) {
  Call call(x, "x", cap, dim, memory_order(strides_of(x)), bias);
  if (residual.has_value()) check_residual(*residual, x);
  check_writable(x);
  run_forward(call, x, cap, bias, residual, x, nullptr, nullptr, 0);
}

// y is x for the in-place form.
std::tuple<Tensor, Tensor> run_extra(const Tensor& x, const Tensor& y, const Tensor& cap, int64_t dim, bool mask,
                                     std::optional<double> balancer, const std::optional<Tensor>& bias,
                                     const std::optional<Tensor>& residual) {
  Call call(x, "x", cap, dim, memory_order(strides_of(y)), bias);
  if (residual.has_value()) check_residual(*residual, x);
  const Tensor packed =
      mask ? empty_contiguous({mask_size(call.numel())}, ScalarType::Byte, x) : nothing(ScalarType::Byte, x);
  const Tensor penalty =
      balancer.has_value() ? empty_contiguous({}, penalty_dtype(cap), x) : nothing(penalty_dtype(cap), x);
  run_forward(call, x, cap, bias, residual, y, mask ? static_cast<uint8_t*>(packed.mutable_data_ptr()) : nullptr,
              balancer.has_value() ? &penalty : nullptr, balancer.value_or(0));
  return {packed, penalty};
}

std::tuple<Tensor, Tensor, Tensor> capped_relu_with_aux(const Tensor& x, const Tensor& cap, int64_t dim, bool mask,
                                                        std::optional<double> balancer,
                                                        const std::optional<Tensor>& bias,
                                                        const std::optional<Tensor>& residual) {
  dtype_of(x, "x");
  const Tensor y = empty_as(x);
  const auto [packed, penalty] = run_extra(x, y, cap, dim, mask, balancer, bias, residual);
  return {y, packed, penalty};
}

std::tuple<Tensor, Tensor> capped_relu_with_aux_(const Tensor& x, const Tensor& cap, int64_t dim, bool mask,
                                                 std::optional<double> balancer, const std::optional<Tensor>& bias,
                                                 const std::optional<Tensor>& residual) {
  check_writable(x);
  return run_extra(x, x, cap, dim, mask, balancer, bias, residual);
}

// Tells a pass where the saved output or mask lies.
template <class Pass>
void give_saved(Pass* pass, const SavedInfo& info, Call& call, const Tensor& saved) {
  info.check_traversal(call);
  if (info.is_mask)
    pass->mask = static_cast<const uint8_t*>(saved.const_data_ptr());
  else
    pass->y = call.operand(saved);
}

std::tuple<Tensor, Tensor, Tensor> capped_relu_backward(const Tensor& grad, const Tensor& saved, const Tensor& cap,
                                                        int64_t dim, const std::vector<int64_t>& order, bool need_x,
                                                        bool need_cap, std::optional<double> balancer,
                                                        const std::optional<Tensor>& grad_penalty,
                                                        const std::optional<Tensor>& bias) {
  const SavedInfo info(grad, "grad", saved, order);
  Call call(grad, "grad", cap, dim, info.order, bias);
  cuda::Backward pass;
  give_saved(&pass, info, call, saved);
  pass.grad = call.operand(grad);
  pass.cap = call.cap(call.readable(cap), "cap");
  if (need_cap && balancer.has_value() && grad_penalty.has_value()) {
    check_device(*grad_penalty, "grad_penalty", grad, "grad");
    pass.grad_penalty = scalar(*grad_penalty, "grad_penalty");
    pass.balancer = *balancer;
  }
  const Tensor dx = need_x ? empty_as_saved(info, grad, saved) : nothing(grad.scalar_type(), grad);
  const Tensor dcap =
      need_cap ? empty_contiguous(sizes_of(cap), cap.scalar_type(), cap) : nothing(cap.scalar_type(), cap);
  const Tensor dbias = bias.has_value() ? empty_contiguous(sizes_of(*bias), bias->scalar_type(), *bias)
                                        : nothing(grad.scalar_type(), grad);
  if (need_x) pass.dx = call.output(dx);
  if (need_cap) pass.dcap = call.cap(dcap, "dcap");
  if (bias.has_value()) pass.dbias = call.per_channel(dbias, "dbias");
  call.run(cuda::backward_workspace(call.problem(), pass),
           [&](void* workspace) { return cuda::backward(call.problem(), pass, workspace); });
  return {dx, dcap, dbias};
}

Tensor capped_relu_jvp(const Tensor& u, const std::optional<Tensor>& v, const Tensor& saved, const Tensor& cap,
                       int64_t dim, const std::vector<int64_t>& order) {
  const SavedInfo info(u, "u", saved, order);
  Call call(u, "u", cap, dim, info.order);
  if (v.has_value()) check_tangent_of_cap(*v, cap, u);
  cuda::Tangent pass;
  give_saved(&pass, info, call, saved);
  const Tensor out = empty_as_saved(info, u, saved);
  pass.u = call.operand(u);
  pass.out = call.output(out);
  pass.cap = call.cap(call.readable(cap), "cap");
  if (v.has_value()) pass.v = call.cap(call.readable(*v), "v");
  call.run({}, [&](void*) { return cuda::tangent(call.problem(), pass); });
  return out;
}

Tensor capped_relu_surrogate_backward(const Tensor& grad, const Tensor& saved, const Tensor& cap, int64_t dim,
                                      const std::vector<int64_t>& order, const std::optional<Tensor>& width) {
  const SavedInfo info(grad, "grad", saved, order);
  Call call(grad, "grad", cap, dim, info.order);
  if (width.has_value()) check_width(*width, cap, info, grad);
  cuda::Surrogate pass;
  info.check_traversal(call);
  if (info.is_mask)
    pass.mask = static_cast<const uint8_t*>(saved.const_data_ptr());
  else
    pass.saved = call.operand(saved);
  const Tensor dx = empty_as_saved(info, grad, saved);
  pass.grad = call.operand(grad);
  pass.dx = call.output(dx);
  if (width.has_value()) {
    pass.cap = call.cap(call.readable(cap), "cap");
    pass.width = call.cap(call.readable(*width), "width");
  }
  call.run({}, [&](void*) { return cuda::surrogate(call.problem(), pass); });
  return dx;
}

std::tuple<Tensor, Tensor> cap_saturation(const Tensor& x, const Tensor& cap, int64_t dim) {
  check_has_samples(x);
  Call call(x, "x", cap, dim, memory_order(strides_of(x)));
  const Tensor counts = empty_contiguous(counts_shape(cap), ScalarType::Long, x);
  const Tensor has_gradient = empty_contiguous({call.sizes[0]}, ScalarType::Bool, x);
  cuda::Saturation pass;
  pass.x = call.operand(x);
  pass.cap = call.cap(call.readable(cap), "cap");
  pass.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  pass.counts_strides = call.contiguous_cap_strides(cap);
  pass.has_gradient = static_cast<uint8_t*>(has_gradient.mutable_data_ptr());
  pass.samples = call.sizes[0];
  pass.sample_inner = call.sample_inner();
  call.run({}, [&](void*) { return cuda::saturation(call.problem(), pass); });
  return {counts, has_gradient};
}

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
  std::vector<cuda::CapTensor> tensors;
};

Tensor cap_penalty(const std::vector<Tensor>& caps, double balancer) {
  const ScalarType dtype = check_caps(caps);
  const OnDevice device(caps[0]);
  const CapList list(caps);
  const Tensor result = empty_contiguous({}, dtype, caps[0]);
  const cuda::Workspace needs = cuda::penalty_workspace(list.tensors);
  const Tensor workspace = empty_contiguous({static_cast<int64_t>(needs.bytes)}, ScalarType::Byte, caps[0]);
  OnDevice::check(cuda::penalty(list.tensors, balancer, scalar(result, "penalty"),
                                needs.bytes > 0 ? workspace.mutable_data_ptr() : nullptr, device.stream()));
  return result;
}

std::vector<Tensor> cap_penalty_backward(const Tensor& grad, const std::vector<Tensor>& caps, double balancer) {
  check_caps(caps);
  check_device(grad, "grad", caps[0], "the first cap");
  const OnDevice device(caps[0]);
  std::vector<Tensor> gradients;
  for (const Tensor& cap : caps) gradients.push_back(empty_contiguous(sizes_of(cap), cap.scalar_type(), cap));
  OnDevice::check(cuda::penalty_backward(CapList(caps).tensors, CapList(gradients).tensors, balancer,
                                         scalar(grad, "grad"), device.stream()));
  return gradients;
}

}  // namespace
}  // namespace dreluop

// Not when the library loads but at torch's first use of CUDA: dreluop/backends/native.py probes the devices before.
extern "C" __attribute__((visibility("default"))) void dreluop_register_cuda() {
  using torch::stable::detail::StableLibrary;
  // SavedInfo for good: what is registered ends with it.
  static auto* const library =
      new StableLibrary(StableLibrary::Kind::IMPL, "dreluop", dreluop::kDeviceKey, __FILE__, __LINE__);
  static const bool registered = [] {
    library->impl("capped_relu", TORCH_BOX(&dreluop::capped_relu));
    library->impl("capped_relu_", TORCH_BOX(&dreluop::capped_relu_));
    library->impl("capped_relu_with_aux", TORCH_BOX(&dreluop::capped_relu_with_aux));
    library->impl("capped_relu_with_aux_", TORCH_BOX(&dreluop::capped_relu_with_aux_));
    library->impl("capped_relu_backward", TORCH_BOX(&dreluop::capped_relu_backward));
    library->impl("capped_relu_jvp", TORCH_BOX(&dreluop::capped_relu_jvp));
    library->impl("capped_relu_surrogate_backward", TORCH_BOX(&dreluop::capped_relu_surrogate_backward));
    library->impl("cap_saturation", TORCH_BOX(&dreluop::cap_saturation));
    library->impl("cap_penalty", TORCH_BOX(&dreluop::cap_penalty));
    library->impl("cap_penalty_backward", TORCH_BOX(&dreluop::cap_penalty_backward));
    return true;
  }();
  (void)registered;
}
