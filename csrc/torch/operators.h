// The operators that dreluop/ops/schemas.py declares, written once: a Device allocates outputs and runs passes.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "torch/call.h"

namespace dreluop {

template <class Device>
struct Operators {
  using Optional = std::optional<Tensor>;
  using CallOnDevice = Call<Device>;

  static Tensor capped_relu(const Tensor& x, const Tensor& cap, int64_t dim, const Optional& bias,
                            const Optional& residual) {
    CallOnDevice call(x, "x", cap, dim, memory_order(strides_of(x)), bias);
    if (residual.has_value()) check_residual(*residual, x);
    const Tensor y = Device::fresh(empty_as(x));
    call.run(forward_pass(call, x, y, cap, bias, residual));
    return y;
  }

  static void capped_relu_(const Tensor& x, const Tensor& cap, int64_t dim, const Optional& bias,
                           const Optional& residual) {
    CallOnDevice call(x, "x", cap, dim, memory_order(strides_of(x)), bias);
    if (residual.has_value()) check_residual(*residual, x);
    check_writable(x);
    call.run(forward_pass(call, x, x, cap, bias, residual));
  }

  static std::tuple<Tensor, Tensor, Tensor> capped_relu_with_aux(const Tensor& x, const Tensor& cap, int64_t dim,
                                                                 bool mask, std::optional<double> balancer,
                                                                 const Optional& bias, const Optional& residual) {
    dtype_of(x, "x");
    const Tensor y = Device::fresh(empty_as(x));
    const auto [packed, penalty] = with_aux(x, y, cap, dim, mask, balancer, bias, residual);
    return {y, packed, penalty};
  }

  static std::tuple<Tensor, Tensor> capped_relu_with_aux_(const Tensor& x, const Tensor& cap, int64_t dim, bool mask,
                                                          std::optional<double> balancer, const Optional& bias,
                                                          const Optional& residual) {
    check_writable(x);
    return with_aux(x, x, cap, dim, mask, balancer, bias, residual);
  }

  static std::tuple<Tensor, Tensor, Tensor> capped_relu_backward(const Tensor& grad, const Tensor& saved,
                                                                 const Tensor& cap, int64_t dim,
                                                                 const std::vector<int64_t>& order, bool need_x,
                                                                 bool need_cap, std::optional<double> balancer,
                                                                 const Optional& grad_penalty, const Optional& bias) {
    const SavedInfo info(grad, "grad", saved, order);
    CallOnDevice call(grad, "grad", cap, dim, info.order, bias);
    Backward pass;
    call.give_saved(&pass, info, saved);
    pass.grad = call.operand(grad);
    pass.cap = call.readable_cap(cap, "cap");
    if (need_cap && balancer.has_value() && grad_penalty.has_value()) {
      check_device(*grad_penalty, "grad_penalty", grad, "grad");
      pass.grad_penalty = scalar(*grad_penalty, "grad_penalty");
      pass.balancer = *balancer;
    }
    const Tensor dx = need_x ? Device::fresh(empty_as_saved(info, grad, saved)) : nothing(grad.scalar_type(), grad);
    const Tensor dcap = need_cap ? contiguous_like(cap) : nothing(cap.scalar_type(), cap);
    const Tensor dbias = bias.has_value() ? contiguous_like(*bias) : nothing(grad.scalar_type(), grad);
    if (need_x) pass.dx = call.output(dx);
    if (need_cap) pass.dcap = call.cap(dcap, "dcap");
    if (bias.has_value()) pass.dbias = call.per_channel(dbias, "dbias");
    call.run(pass);
    return {dx, dcap, dbias};
  }

  static Tensor capped_relu_jvp(const Tensor& u, const Optional& v, const Tensor& saved, const Tensor& cap, int64_t dim,
                                const std::vector<int64_t>& order) {
    const SavedInfo info(u, "u", saved, order);
    CallOnDevice call(u, "u", cap, dim, info.order);
    if (v.has_value()) check_tangent_of_cap(*v, cap, u);
    Jvp pass;
    call.give_saved(&pass, info, saved);
    const Tensor out = Device::fresh(empty_as_saved(info, u, saved));
    pass.u = call.operand(u);
    pass.out = call.output(out);
    pass.cap = call.readable_cap(cap, "cap");
    if (v.has_value()) pass.v = call.readable_cap(*v, "v");
    call.run(pass);
    return out;
  }

  static Tensor capped_relu_surrogate_backward(const Tensor& grad, const Tensor& saved, const Tensor& cap, int64_t dim,
                                               const std::vector<int64_t>& order, const Optional& width) {
    const SavedInfo info(grad, "grad", saved, order);
    CallOnDevice call(grad, "grad", cap, dim, info.order);
    if (width.has_value()) check_width(*width, cap, info, grad);
    Surrogate pass;
    call.give_saved(&pass, info, saved);
    const Tensor dx = Device::fresh(empty_as_saved(info, grad, saved));
    pass.grad = call.operand(grad);
    pass.dx = call.output(dx);
    if (width.has_value()) {
      pass.cap = call.readable_cap(cap, "cap");
      pass.width = call.readable_cap(*width, "width");
    }
    call.run(pass);
    return dx;
  }

  static std::tuple<Tensor, Tensor> cap_saturation(const Tensor& x, const Tensor& cap, int64_t dim) {
    check_has_samples(x);
    CallOnDevice call(x, "x", cap, dim, memory_order(strides_of(x)));
    const Tensor counts = empty_contiguous(counts_shape(cap), ScalarType::Long, x);
    const Tensor has_gradient = empty_contiguous({call.sizes[0]}, ScalarType::Bool, x);
    Saturation pass;
    pass.x = call.operand(x);
    pass.cap = call.readable_cap(cap, "cap");
    pass.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
    pass.counts_strides = call.contiguous_cap_strides(cap);
    pass.has_gradient = static_cast<uint8_t*>(has_gradient.mutable_data_ptr());
    pass.samples = call.sizes[0];
    pass.sample_inner = call.sample_inner();
    call.run(pass);
    return {counts, has_gradient};
  }

  static Tensor cap_penalty(const std::vector<Tensor>& caps, double balancer) {
    const ScalarType dtype = check_caps(caps);
    const Device device(caps[0]);
    const Tensor result = empty_contiguous({}, dtype, caps[0]);
    device.penalty(CapList(caps).tensors, balancer, scalar(result, "penalty"));
    return result;
  }

  static std::vector<Tensor> cap_penalty_backward(const Tensor& grad, const std::vector<Tensor>& caps,
                                                  double balancer) {
    check_caps(caps);
    check_device(grad, "grad", caps[0], "the first cap");
    const Device device(caps[0]);
    std::vector<Tensor> gradients;
    for (const Tensor& cap : caps) gradients.push_back(contiguous_like(cap));
    device.penalty_backward(CapList(caps).tensors, CapList(gradients).tensors, balancer, scalar(grad, "grad"));
    return gradients;
  }

  template <class Library>
  static void implement(Library& library) {
    library.impl("capped_relu", TORCH_BOX(&Operators::capped_relu));
    library.impl("capped_relu_", TORCH_BOX(&Operators::capped_relu_));
    library.impl("capped_relu_with_aux", TORCH_BOX(&Operators::capped_relu_with_aux));
    library.impl("capped_relu_with_aux_", TORCH_BOX(&Operators::capped_relu_with_aux_));
    library.impl("capped_relu_backward", TORCH_BOX(&Operators::capped_relu_backward));
    library.impl("capped_relu_jvp", TORCH_BOX(&Operators::capped_relu_jvp));
    library.impl("capped_relu_surrogate_backward", TORCH_BOX(&Operators::capped_relu_surrogate_backward));
    library.impl("cap_saturation", TORCH_BOX(&Operators::cap_saturation));
    library.impl("cap_penalty", TORCH_BOX(&Operators::cap_penalty));
    library.impl("cap_penalty_backward", TORCH_BOX(&Operators::cap_penalty_backward));
  }

 private:
  // y is x for the in-place forms.
  static Forward forward_pass(CallOnDevice& call, const Tensor& x, const Tensor& y, const Tensor& cap,
                              const Optional& bias, const Optional& residual) {
    Forward pass;
    pass.y = call.output(y);
    pass.x = call.operand(x);
    pass.cap = call.readable_cap(cap, "cap");
    if (residual.has_value()) pass.residual = call.operand(*residual);
    if (bias.has_value()) pass.bias = call.readable_per_channel(*bias, "bias");
    return pass;
  }

  static std::tuple<Tensor, Tensor> with_aux(const Tensor& x, const Tensor& y, const Tensor& cap, int64_t dim,
                                             bool mask, std::optional<double> balancer, const Optional& bias,
                                             const Optional& residual) {
    CallOnDevice call(x, "x", cap, dim, memory_order(strides_of(y)), bias);
    if (residual.has_value()) check_residual(*residual, x);
    const Tensor packed =
        mask ? empty_contiguous({mask_size(call.numel())}, ScalarType::Byte, x) : nothing(ScalarType::Byte, x);
    const Tensor penalty =
        balancer.has_value() ? empty_contiguous({}, penalty_dtype(cap), x) : nothing(penalty_dtype(cap), x);
    Forward pass = forward_pass(call, x, y, cap, bias, residual);
    if (mask) pass.mask = static_cast<uint8_t*>(packed.mutable_data_ptr());
    if (balancer.has_value()) {
      pass.penalty = scalar(penalty, "penalty");
      pass.balancer = *balancer;
    }
    call.run(pass);
    return {packed, penalty};
  }
};

}  // namespace dreluop
