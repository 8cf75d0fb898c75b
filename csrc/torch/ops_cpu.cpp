// CPU kernels for the operators that dreluop/ops/schemas.py declares.
#include <memory>
#include <tuple>

#include "cpu/kernels.h"
#include "cpu/primitives.h"
#include "cpu/traverse.h"
#include "torch/arguments.h"
#include "torch/huge_pages.h"

namespace dreluop {
namespace {

using cpu::Operand;
using cpu::Problem;
using cpu::Saved;

void parallel_for(int64_t n, int64_t grain, const cpu::Body& body) {
  if (n <= grain)
    body(0, n);
  else
    torch::stable::parallel_for(0, n, grain, body);
}

// A cap-shaped tensor (cap, bias, tangent, gradient) whose elements are taken in the order in which x is traversed.
Operand in_traversal_order(const Tensor& cap, const Geometry& geometry, void* data) {
  return Operand(data, sizes_of(cap), strides_of(cap), geometry.cap_order(cap.dim()));
}

Operand in_any_order(const Tensor& t) {
  DimVector order(t.dim());
  std::iota(order.begin(), order.end(), int64_t{0});
  return Operand(const_cast<void*>(t.const_data_ptr()), sizes_of(t), strides_of(t), order);
}

// Calls f(i, value) for every value of a tensor in the order of the operand, as double.
template <class F>
void for_each_value(DType dtype, const Operand& operand, int64_t numel, const F& f) {
  with_dtype_traits(dtype, [&](auto traits) {
    using Traits = decltype(traits);
    typename Traits::Storage buffer[cpu::kBlock];
    for (int64_t begin = 0; begin < numel; begin += cpu::kBlock) {
      const int64_t n = std::min(cpu::kBlock, numel - begin);
      const auto* values = operand.read(begin, n, buffer);
      for (int64_t i = 0; i < n; ++i) f(begin + i, Traits::upcast(values[i]));
    }
  });
}

// The values of a cap-shaped tensor rounded to another dtype, in traversal order, one per cap of the layout; borrowed
// where they lie so already.
class PerCap {
 public:
  PerCap(const Tensor& cap, const char* name, const Geometry& geometry, DType dtype) {
    const Operand operand = in_traversal_order(cap, geometry, const_cast<void*>(cap.const_data_ptr()));
    const DType own = dtype_of(cap, name);
    const int64_t count = geometry.traversal.layout.caps, numel = cap.numel();
    if (own == dtype && operand.is_linear() && count == numel) {
      values_ = operand.data();
      return;
    }
    with_dtype_traits(dtype, [&](auto traits) {
      using Traits = decltype(traits);
      using T = typename Traits::Storage;
      owned_.reset(new unsigned char[std::max<int64_t>(1, count) * sizeof(T)]);
      T* to = reinterpret_cast<T*>(owned_.get());
      for_each_value(own, operand, numel, [&](int64_t i, double value) { to[i] = Traits::round(value); });
      if (numel < count) std::fill(to + 1, to + count, to[0]);
    });
    values_ = owned_.get();
  }
  const void* values() const { return values_; }

 private:
  std::unique_ptr<unsigned char[]> owned_;
  const void* values_ = nullptr;
};

void store_scalar(const Tensor& t, double value) {
  if (t.scalar_type() == ScalarType::Double)
    *static_cast<double*>(t.mutable_data_ptr()) = value;
  else
    *static_cast<float*>(t.mutable_data_ptr()) = static_cast<float>(value);
}

double load_scalar(const Tensor& t, const char* name) {
  check_one_element(t, name);
  double result = 0;
  with_dtype_traits(dtype_of(t, name), [&](auto traits) {
    using Traits = decltype(traits);
    result = Traits::upcast(*static_cast<const typename Traits::Storage*>(t.const_data_ptr()));
  });
  return result;
}

double sum_of_squares(const Tensor& cap) {
  double sum = 0, error = 0;
  for_each_value(dtype_of(cap, "cap"), in_any_order(cap), cap.numel(),
                 [&](int64_t, double m) { sum = cpu::two_sum(sum, m * m, &error); });
  return cpu::with_error(sum, error);
}

Tensor penalty_or_nothing(const Tensor& cap, std::optional<double> balancer) {
  if (!balancer.has_value()) return nothing(penalty_dtype(cap), cap);
  const Tensor result = empty_contiguous({}, penalty_dtype(cap), cap);
  store_scalar(result, *balancer * sum_of_squares(cap));
  return result;
}

Tensor in_large_pages(Tensor t) {
  advise_huge_pages(t.mutable_data_ptr(), t.numel() * size_of(dtype_of(t, "x")));
  return t;
}

// The view of one call.
struct Call : Geometry {
  using Geometry::Geometry;

  Operand operand(const Tensor& t) const {
    return Operand(const_cast<void*>(t.const_data_ptr()), sizes, strides_of(t), traversal.order);
  }
  Operand output(const Tensor& t) const { return Operand(t.mutable_data_ptr(), sizes, strides_of(t), traversal.order); }
  Problem problem(const PerCap& caps) const { return {dtype, numel(), traversal.layout, caps.values(), parallel_for}; }
};

// y is x for the in-place form.
void run_forward(const Call& call, const Tensor& x, const Tensor& cap, const std::optional<Tensor>& bias,
                 const std::optional<Tensor>& residual, const Tensor& y, uint8_t* mask) {
  const PerCap caps(cap, "cap", call, call.dtype);
  std::optional<PerCap> biases;
  std::optional<Operand> more;
  cpu::BiasAndResidual added;
  if (bias.has_value()) {
    biases.emplace(*bias, "bias", call, call.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32);
    added.bias = biases->values();
  }
  if (residual.has_value()) {
    more = call.operand(*residual);
    added.residual = &*more;
  }
  cpu::forward(call.problem(caps), call.operand(x), added, call.output(y), mask);
}

Tensor capped_relu(const Tensor& x, const Tensor& cap, int64_t dim, const std::optional<Tensor>& bias,
                   const std::optional<Tensor>& residual) {
  const Call call(x, "x", cap, dim, memory_order(strides_of(x)), bias);
  if (residual.has_value()) check_residual(*residual, x);
  const Tensor y = in_large_pages(empty_as(x));
  run_forward(call, x, cap, bias, residual, y, nullptr);
  return y;
}

void capped_relu_(const Tensor& x, const Tensor& cap, int64_t dim, const std::optional<Tensor>& bias,
                  const std::optional<Tensor>& residual) {
  const Call call(x, "x", cap, dim, memory_order(strides_of(x)), bias);
  if (residual.has_value()) check_residual(*residual, x);
  check_writable(x);
  run_forward(call, x, cap, bias, residual, x, nullptr);
}

std::tuple<Tensor, Tensor> run_extra(const Tensor& x, const Tensor& y, const Tensor& cap, int64_t dim, bool mask,
                                     std::optional<double> balancer, const std::optional<Tensor>& bias,
                                     const std::optional<Tensor>& residual) {
  const Call call(x, "x", cap, dim, memory_order(strides_of(y)), bias);
  if (residual.has_value()) check_residual(*residual, x);
  const Tensor packed =
      mask ? empty_contiguous({mask_size(call.numel())}, ScalarType::Byte, x) : nothing(ScalarType::Byte, x);
  const Tensor penalty = penalty_or_nothing(cap, balancer);
  run_forward(call, x, cap, bias, residual, y, mask ? static_cast<uint8_t*>(packed.mutable_data_ptr()) : nullptr);
  return {packed, penalty};
}

std::tuple<Tensor, Tensor, Tensor> capped_relu_with_aux(const Tensor& x, const Tensor& cap, int64_t dim, bool mask,
                                                        std::optional<double> balancer,
                                                        const std::optional<Tensor>& bias,
                                                        const std::optional<Tensor>& residual) {
  dtype_of(x, "x");
  const Tensor y = in_large_pages(empty_as(x));
  const auto [packed, penalty] = run_extra(x, y, cap, dim, mask, balancer, bias, residual);
  return {y, packed, penalty};
}

std::tuple<Tensor, Tensor> capped_relu_with_aux_(const Tensor& x, const Tensor& cap, int64_t dim, bool mask,
                                                 std::optional<double> balancer, const std::optional<Tensor>& bias,
                                                 const std::optional<Tensor>& residual) {
  check_writable(x);
  return run_extra(x, x, cap, dim, mask, balancer, bias, residual);
}

Saved view_of(const SavedInfo& info, const Call& call, const Tensor& saved) {
  info.check_traversal(call);
  Saved result;
  if (info.is_mask)
    result.mask = static_cast<const uint8_t*>(saved.const_data_ptr());
  else
    result.y = call.operand(saved);
  return result;
}

// sums: one per cap of the layout, in traversal order, or a single one. value_of(i) is added to sum i.
template <class F>
Tensor from_sums(const Tensor& like, const Geometry& geometry, const F& value_of) {
  const Tensor result = empty_contiguous(sizes_of(like), like.scalar_type(), like);
  const Operand to = in_traversal_order(result, geometry, result.mutable_data_ptr());
  with_dtype_traits(dtype_of(like, "cap"), [&](auto traits) {
    using Traits = decltype(traits);
    const int64_t numel = result.numel();
    if (to.is_linear()) {
      auto* const values = static_cast<typename Traits::Storage*>(to.data());
      for (int64_t i = 0; i < numel; ++i) values[i] = Traits::round(value_of(i));
      return;
    }
    for (int64_t i = 0; i < numel; ++i) {
      typename Traits::Storage buffer;
      auto* at = to.target(i, 1, &buffer);
      *at = Traits::round(value_of(i));
      to.write(i, 1, at, &buffer);
    }
  });
  return result;
}

Tensor cap_gradient(const Tensor& cap, const Geometry& geometry, std::vector<double> sums,
                    std::optional<double> penalty_scale) {
  if (geometry.traversal.shared_cap) {
    double sum = 0, error = 0;
    for (const double term : sums) sum = cpu::two_sum(sum, term, &error);
    sums.assign(1, cpu::with_error(sum, error));
  }
  if (penalty_scale.has_value()) {
    const Operand operand = in_traversal_order(cap, geometry, const_cast<void*>(cap.const_data_ptr()));
    for_each_value(dtype_of(cap, "cap"), operand, cap.numel(),
                   [&](int64_t i, double m) { sums[i] += *penalty_scale * m; });
  }
  return from_sums(cap, geometry, [&](int64_t i) { return sums[i]; });
}

std::tuple<Tensor, Tensor, Tensor> capped_relu_backward(const Tensor& grad, const Tensor& saved, const Tensor& cap,
                                                        int64_t dim, const std::vector<int64_t>& order, bool need_x,
                                                        bool need_cap, std::optional<double> balancer,
                                                        const std::optional<Tensor>& grad_penalty,
                                                        const std::optional<Tensor>& bias) {
  const SavedInfo info(grad, "grad", saved, order);
  const Call call(grad, "grad", cap, dim, info.order, bias);
  const PerCap caps(cap, "cap", call, call.dtype);
  const Saved view = view_of(info, call, saved);
  std::optional<double> scale;
  if (need_cap && balancer.has_value() && grad_penalty.has_value())
    scale = 2 * *balancer * load_scalar(*grad_penalty, "grad_penalty");
  const Tensor dx = need_x ? in_large_pages(empty_as_saved(info, grad, saved)) : nothing(grad.scalar_type(), grad);
  const Operand dx_operand = need_x ? call.output(dx) : Operand();
  const int64_t count = call.traversal.layout.caps;
  std::vector<double> to_caps(need_cap ? count : 0), to_biases(bias.has_value() ? count : 0);
  const bool in_double =
      cap.scalar_type() == ScalarType::Double || (bias.has_value() && bias->scalar_type() == ScalarType::Double);
  cpu::backward(call.problem(caps), call.operand(grad), view, need_x ? &dx_operand : nullptr,
                need_cap ? to_caps.data() : nullptr, bias.has_value() ? to_biases.data() : nullptr, in_double);
  return {dx, need_cap ? cap_gradient(cap, call, std::move(to_caps), scale) : nothing(cap.scalar_type(), cap),
          bias.has_value() ? from_sums(*bias, call, [&](int64_t i) { return to_biases[i]; })
                           : nothing(grad.scalar_type(), grad)};
}

Tensor capped_relu_jvp(const Tensor& u, const std::optional<Tensor>& v, const Tensor& saved, const Tensor& cap,
                       int64_t dim, const std::vector<int64_t>& order) {
  const SavedInfo info(u, "u", saved, order);
  const Call call(u, "u", cap, dim, info.order);
  if (v.has_value()) check_tangent_of_cap(*v, cap, u);
  const PerCap caps(cap, "cap", call, call.dtype);
  std::optional<PerCap> at_cap;
  if (v.has_value()) at_cap.emplace(*v, "v", call, call.dtype);
  const Saved view = view_of(info, call, saved);
  const Tensor out = in_large_pages(empty_as_saved(info, u, saved));
  cpu::tangent(call.problem(caps), call.operand(u), at_cap ? at_cap->values() : nullptr, view, call.output(out));
  return out;
}

Tensor capped_relu_surrogate_backward(const Tensor& grad, const Tensor& saved, const Tensor& cap, int64_t dim,
                                      const std::vector<int64_t>& order, const std::optional<Tensor>& width) {
  const SavedInfo info(grad, "grad", saved, order);
  const Call call(grad, "grad", cap, dim, info.order);
  if (width.has_value()) check_width(*width, cap, info, grad);
  const PerCap caps(cap, "cap", call, call.dtype);
  std::optional<PerCap> widths;
  if (width.has_value())
    widths.emplace(*width, "width", call, call.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32);
  const Saved view = view_of(info, call, saved);
  const Tensor dx = in_large_pages(empty_as_saved(info, grad, saved));
  cpu::surrogate(call.problem(caps), call.operand(grad), view, widths ? widths->values() : nullptr, call.output(dx));
  return dx;
}

std::tuple<Tensor, Tensor> cap_saturation(const Tensor& x, const Tensor& cap, int64_t dim) {
  check_has_samples(x);
  const Call call(x, "x", cap, dim, memory_order(strides_of(x)));
  const cpu::SampleLayout sample{call.sizes[0], call.sample_inner()};
  const Tensor counts = empty_contiguous(counts_shape(cap), ScalarType::Long, x);
  const Tensor has_gradient = empty_contiguous({call.sizes[0]}, ScalarType::Bool, x);
  auto* has_gradient_data = static_cast<uint8_t*>(has_gradient.mutable_data_ptr());
  std::fill_n(has_gradient_data, has_gradient.numel(), uint8_t{0});
  const int64_t n = call.traversal.layout.caps;
  std::vector<int64_t> inside(n, 0), capped(n, 0);
  const PerCap caps(cap, "cap", call, call.dtype);
  cpu::saturation(call.problem(caps), call.operand(x), sample, inside.data(), capped.data(), has_gradient_data);

  // The counters are in traversal order, the result in the order of the cap.
  const int64_t shared = n > 0 ? product(call.sizes) / n : 0;
  auto* data = static_cast<int64_t*>(counts.mutable_data_ptr());
  const Tensor one = empty_contiguous(sizes_of(cap), ScalarType::Long, x);
  for (int part = 0; part < 3; ++part) {
    const Operand to = in_traversal_order(one, call, data + part * n);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t value = part == kInside ? inside[i] : part == kCapped ? capped[i] : shared - inside[i] - capped[i];
      to.write(i, 1, &value, &value);
    }
  }
  return {counts, has_gradient};
}

Tensor cap_penalty(const std::vector<Tensor>& caps, double balancer) {
  const ScalarType dtype = check_caps(caps);
  double sum = 0, error = 0;
  for (const Tensor& cap : caps) sum = cpu::two_sum(sum, sum_of_squares(cap), &error);
  const Tensor result = empty_contiguous({}, dtype, caps[0]);
  store_scalar(result, balancer * cpu::with_error(sum, error));
  return result;
}

std::vector<Tensor> cap_penalty_backward(const Tensor& grad, const std::vector<Tensor>& caps, double balancer) {
  check_caps(caps);
  const double scale = 2 * balancer * load_scalar(grad, "grad");
  std::vector<Tensor> result;
  result.reserve(caps.size());
  for (const Tensor& cap : caps) {
    const Tensor gradient = empty_contiguous(sizes_of(cap), cap.scalar_type(), cap);
    with_dtype_traits(dtype_of(cap, "cap"), [&](auto traits) {
      using Traits = decltype(traits);
      auto* to = static_cast<typename Traits::Storage*>(gradient.mutable_data_ptr());
      for_each_value(dtype_of(cap, "cap"), in_any_order(cap), cap.numel(),
                     [&](int64_t i, double m) { to[i] = Traits::round(scale * m); });
    });
    result.push_back(gradient);
  }
  return result;
}

}  // namespace
}  // namespace dreluop

STABLE_TORCH_LIBRARY_IMPL(dreluop, CPU, m) {
  m.impl("capped_relu", TORCH_BOX(&dreluop::capped_relu));
  m.impl("capped_relu_", TORCH_BOX(&dreluop::capped_relu_));
  m.impl("capped_relu_with_aux", TORCH_BOX(&dreluop::capped_relu_with_aux));
  m.impl("capped_relu_with_aux_", TORCH_BOX(&dreluop::capped_relu_with_aux_));
  m.impl("capped_relu_backward", TORCH_BOX(&dreluop::capped_relu_backward));
  m.impl("capped_relu_jvp", TORCH_BOX(&dreluop::capped_relu_jvp));
  m.impl("capped_relu_surrogate_backward", TORCH_BOX(&dreluop::capped_relu_surrogate_backward));
  m.impl("cap_saturation", TORCH_BOX(&dreluop::cap_saturation));
  m.impl("cap_penalty", TORCH_BOX(&dreluop::cap_penalty));
  m.impl("cap_penalty_backward", TORCH_BOX(&dreluop::cap_penalty_backward));
}
