// The operators of batch normalization with a capped activation, for devices that have its passes.
#pragma once

#include <tuple>

#include "torch/call.h"

namespace dreluop {

inline void check_per_channel(const std::optional<Tensor>& t, const char* name, const Tensor& x) {
  if (!t.has_value()) return;
  dtype_of(*t, name);
  check_device(*t, name, x, "x");
  const DimVector expected{sizes_of(x)[1]};
  if (sizes_of(*t) != expected)
    fail(std::string(name) + ": got shape " + to_string(sizes_of(*t)) + " for x of shape " + to_string(sizes_of(x)) +
         "; expected " + to_string(expected));
}

inline void check_batch_norm(const Tensor& x, const Tensor& cap, const std::optional<Tensor>& weight,
                             const std::optional<Tensor>& bias, const std::optional<Tensor>& mean,
                             const std::optional<Tensor>& var) {
  dtype_of(x, "x");
  if (x.dim() < 2 || x.numel() == 0)
    fail("x: got shape " + to_string(sizes_of(x)) + "; expected at least two dimensions, and elements");
  if (cap.dim() > 1) fail("cap: got shape " + to_string(sizes_of(cap)) + "; expected one cap, or one per channel");
  if (mean.has_value() != var.has_value()) fail("mean, var: got one of them; expected both or none");
  check_per_channel(weight, "weight", x);
  check_per_channel(bias, "bias", x);
  check_per_channel(mean, "mean", x);
  check_per_channel(var, "var", x);
}

template <class Device>
struct BatchNormOperators {
  using Optional = std::optional<Tensor>;
  using CallOnDevice = Call<Device>;

  static std::tuple<Tensor, Tensor, Tensor, Tensor> capped_batch_norm(const Tensor& x, const Tensor& cap,
                                                                      const Optional& weight, const Optional& bias,
                                                                      const Optional& mean, const Optional& var,
                                                                      const Optional& residual, double eps, bool mask) {
    check_batch_norm(x, cap, weight, bias, mean, var);
    if (residual.has_value()) check_residual(*residual, x);
    const ScalarType wide = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    const bool trains = !mean.has_value();
    const DimVector channels{sizes_of(x)[1]};
    const Tensor batch_mean = trains ? empty_contiguous(channels, wide, x) : nothing(wide, x);
    const Tensor batch_var = trains ? empty_contiguous(channels, wide, x) : nothing(wide, x);
    // A tensor of the channels makes the layout count them under a single cap too.
    CallOnDevice call(x, "x", cap, 1, memory_order(strides_of(x)), trains ? batch_mean : *mean);
    const Tensor packed =
        mask ? empty_contiguous({mask_size(call.numel())}, ScalarType::Byte, x) : nothing(ScalarType::Byte, x);
    const Tensor y = Device::fresh(empty_as(x));
    BatchNorm pass;
    pass.y = call.output(y);
    pass.x = call.operand(x);
    if (residual.has_value()) pass.residual = call.operand(*residual);
    give_parameters(&pass, call, weight, bias, cap, eps);
    pass.trains = trains;
    pass.mean = call.per_channel(trains ? batch_mean : *mean, "mean");
    pass.var = call.per_channel(trains ? batch_var : *var, "var");
    if (mask) pass.mask = static_cast<uint8_t*>(packed.mutable_data_ptr());
    call.run(pass);
    return {y, batch_mean, batch_var, packed};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> capped_batch_norm_backward(
      const Tensor& grad, const Tensor& x, const Tensor& cap, const Optional& weight, const Optional& bias,
      const Tensor& mean, const Tensor& var, const Optional& mask, double eps, bool training, bool need_x,
      bool need_weight, bool need_bias, bool need_cap, bool need_residual) {
    check_batch_norm(x, cap, weight, bias, mean, var);
    check_device(grad, "grad", x, "x");
    check_sizes(grad, "grad", x, "x's");
    check_dtype(grad, "grad", x, "x's");
    CallOnDevice call(x, "x", cap, 1, memory_order(strides_of(x)), mean);
    if (mask.has_value()) check_mask(*mask, x);
    const auto like = [&](bool wanted, const Optional& t) {
      return wanted && t.has_value() ? contiguous_like(*t) : nothing(x.scalar_type(), x);
    };
    const Tensor dx = need_x ? Device::fresh(empty_as(x)) : nothing(x.scalar_type(), x);
    const Tensor dresidual = need_residual ? Device::fresh(empty_as(x)) : nothing(x.scalar_type(), x);
    const Tensor dweight = like(need_weight, weight), dbias = like(need_bias, bias), dcap = like(need_cap, cap);
    BatchNormBackward pass;
    if (need_x) pass.dx = call.output(dx);
    if (need_residual) pass.dresidual = call.output(dresidual);
    pass.grad = call.operand(grad);
    pass.x = call.operand(x);
    give_parameters(&pass, call, weight, bias, cap, eps);
    pass.trains = training;
    pass.mean = call.per_channel(mean, "mean");
    pass.var = call.per_channel(var, "var");
    if (need_weight && weight.has_value()) pass.dweight = call.per_channel(dweight, "dweight");
    if (need_bias && bias.has_value()) pass.dbias = call.per_channel(dbias, "dbias");
    if (need_cap) pass.dcap = call.cap(dcap, "dcap");
    if (mask.has_value()) pass.mask = static_cast<const uint8_t*>(mask->const_data_ptr());
    call.run(pass);
    return {dx, dweight, dbias, dcap, dresidual};
  }

 private:
  static void check_mask(const Tensor& mask, const Tensor& x) {
    check_device(mask, "mask", x, "x");
    if (mask.scalar_type() != ScalarType::Byte || mask.dim() != 1 || mask.numel() != mask_size(x.numel()) ||
        !mask.is_contiguous())
      fail("mask: got shape " + to_string(sizes_of(mask)) + "; expected (" + std::to_string(mask_size(x.numel())) +
           ",) of bytes");
  }

  template <class Pass>
  static void give_parameters(Pass* pass, CallOnDevice& call, const Optional& weight, const Optional& bias,
                              const Tensor& cap, double eps) {
    if (weight.has_value()) pass->weight = call.per_channel(*weight, "weight");
    if (bias.has_value()) pass->bias = call.per_channel(*bias, "bias");
    pass->cap = call.cap(cap, "cap");
    pass->eps = eps;
  }
};

}  // namespace dreluop
