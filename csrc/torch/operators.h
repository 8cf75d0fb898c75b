// The operators that dreluop/ops/schemas.py declares, written once: a Device allocates outputs and runs passes.
#pragma once

#include <tuple>

#include "torch/call.h"

namespace dreluop {

template <class Device>
struct Operators {
  using Optional = std::optional<Tensor>;
  using CallOnDevice = Call<Device>;

  // y is x for the in-place forms. What is not asked for is not made.
  struct Results {
    Tensor y;
    Optional mask, penalty;
  };

  static Results activate(const Tensor& x, const Tensor& cap, int64_t dim, bool mask, std::optional<double> balancer,
                          const Optional& bias, const Optional& residual, int64_t zeroed, bool inplace) {
    dtype_of(x, "x");
    if (inplace) check_writable(x);
    Results results{inplace ? x : Device::fresh(empty_as(x)), {}, {}};
    const Tensor& y = results.y;
    CallOnDevice call(x, "x", cap, dim, memory_order(strides_of(y)), bias);
    if (residual.has_value()) check_residual(*residual, x);
    Forward pass;
    pass.zeroed = check_zeroed(zeroed);
    pass.y = call.output(y);
    pass.x = call.operand(x);
    pass.cap = call.readable_cap(cap, "cap");
    if (residual.has_value()) pass.residual = call.operand(*residual);
    if (bias.has_value()) pass.bias = call.readable_per_channel(*bias, "bias");
    if (mask) {
      results.mask = empty_contiguous({mask_size(call.numel())}, ScalarType::Byte, x);
      pass.mask = static_cast<uint8_t*>(results.mask->mutable_data_ptr());
    }
    if (balancer.has_value()) {
      results.penalty = empty_contiguous({}, penalty_dtype(cap), x);
      pass.penalty = scalar(*results.penalty, "penalty");
      pass.balancer = *balancer;
    }
    call.run(pass);
    return results;
  }

  static Tensor capped_relu(const Tensor& x, const Tensor& cap, int64_t dim, const Optional& bias,
                            const Optional& residual, int64_t zeroed) {
    return activate(x, cap, dim, false, std::nullopt, bias, residual, zeroed, false).y;
  }

  static void capped_relu_(const Tensor& x, const Tensor& cap, int64_t dim, const Optional& bias,
                           const Optional& residual, int64_t zeroed) {
    activate(x, cap, dim, false, std::nullopt, bias, residual, zeroed, true);
  }

  static std::tuple<Tensor, Tensor, Tensor> capped_relu_with_aux(const Tensor& x, const Tensor& cap, int64_t dim,
                                                                 bool mask, std::optional<double> balancer,
                                                                 const Optional& bias, const Optional& residual,
                                                                 int64_t zeroed) {
    const Results results = activate(x, cap, dim, mask, balancer, bias, residual, zeroed, false);
    return std::tuple_cat(std::make_tuple(results.y), aux(results, cap));
  }

  static std::tuple<Tensor, Tensor> capped_relu_with_aux_(const Tensor& x, const Tensor& cap, int64_t dim, bool mask,
                                                          std::optional<double> balancer, const Optional& bias,
                                                          const Optional& residual, int64_t zeroed) {
    return aux(activate(x, cap, dim, mask, balancer, bias, residual, zeroed, true), cap);
  }

  struct Gradients {
    Optional dx, dcap, dbias;
  };

  static Gradients gradients(const Tensor& grad, const Tensor& saved, const Tensor& cap, int64_t dim,
                             const DimVector& order, bool need_x, bool need_cap, std::optional<double> balancer,
                             const Optional& grad_penalty, const Optional& bias, int64_t zeroed) {
    const SavedInfo info(grad, "grad", saved, order);
    CallOnDevice call(grad, "grad", cap, dim, info.order, bias);
    Backward pass;
    pass.zeroed = check_zeroed(zeroed);
    call.give_saved(&pass, info, saved);
    pass.grad = call.operand(grad);
    pass.cap = call.readable_cap(cap, "cap");
    if (need_cap && balancer.has_value() && grad_penalty.has_value()) {
      check_device(*grad_penalty, "grad_penalty", grad, "grad");
      pass.grad_penalty = scalar(*grad_penalty, "grad_penalty");
      pass.balancer = *balancer;
    }
    Gradients results;
    if (need_x) {
      results.dx = Device::fresh(empty_as_saved(info, grad, saved));
      pass.dx = call.output(*results.dx);
    }
    if (need_cap) {
      results.dcap = contiguous_like(cap);
      pass.dcap = call.cap(*results.dcap, "dcap");
    }
    if (bias.has_value()) {
      results.dbias = contiguous_like(*bias);
      pass.dbias = call.per_channel(*results.dbias, "dbias");
    }
    call.run(pass);
    return results;
  }

  static std::tuple<Tensor, Tensor, Tensor> capped_relu_backward(const Tensor& grad, const Tensor& saved,
                                                                 const Tensor& cap, int64_t dim,
                                                                 const std::vector<int64_t>& order, bool need_x,
                                                                 bool need_cap, std::optional<double> balancer,
                                                                 const Optional& grad_penalty, const Optional& bias,
                                                                 int64_t zeroed) {
    const auto [dx, dcap, dbias] =
        gradients(grad, saved, cap, dim, order, need_x, need_cap, balancer, grad_penalty, bias, zeroed);
    return {or_nothing(dx, grad.scalar_type(), grad), or_nothing(dcap, cap.scalar_type(), cap),
            or_nothing(dbias, grad.scalar_type(), grad)};
  }

  static Tensor capped_relu_jvp(const Tensor& u, const Optional& v, const Tensor& saved, const Tensor& cap, int64_t dim,
                                const std::vector<int64_t>& order, int64_t zeroed) {
    const SavedInfo info(u, "u", saved, order);
    CallOnDevice call(u, "u", cap, dim, info.order);
    if (v.has_value()) check_tangent_of_cap(*v, cap, u);
    Jvp pass;
    pass.zeroed = check_zeroed(zeroed);
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

 private:
  // As the operators return it.
  static Tensor or_nothing(const Optional& t, ScalarType dtype, const Tensor& like) {
    return t.has_value() ? *t : nothing(dtype, like);
  }

  static std::tuple<Tensor, Tensor> aux(const Results& results, const Tensor& cap) {
    return {or_nothing(results.mask, ScalarType::Byte, results.y),
            or_nothing(results.penalty, penalty_dtype(cap), results.y)};
  }
};

}  // namespace dreluop
