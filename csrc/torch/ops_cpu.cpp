// CPU kernels for the operators that dreluop/ops/schemas.py declares.
#include <atomic>
#include <memory>
#include <tuple>

#include "cpu/kernels.h"
#include "cpu/primitives.h"
#include "cpu/walk.h"
#include "torch/huge_pages.h"
#include "torch/tensors.h"

namespace dreluop {
namespace {

using cpu::Operand;
using cpu::Problem;
using cpu::Saved;
using cpu::with_format;

void parallel_for(int64_t n, int64_t grain, const cpu::Body& body) {
  if (n <= grain)
    body(0, n);
  else
    torch::stable::parallel_for(0, n, grain, body);
}

// A cap-shaped tensor (cap, its tangent, its gradient) whose elements are taken in the order in which x is walked.
Operand in_walking_order(const Tensor& cap, const Walk& walk, void* data) {
  const Sizes sizes = sizes_of(cap);
  Sizes order;
  if (walk.granularity == Granularity::kNeuron) {
    for (const int64_t d : walk.order)
      if (d != 0) order.push_back(d - 1);
  } else {
    order.resize(sizes.size());
    std::iota(order.begin(), order.end(), int64_t{0});
  }
  return Operand(data, sizes, strides_of(cap), order);
}

// Calls f(i, value) for every value of a cap-shaped tensor, in walking order, as double.
template <class F>
void for_each_value(const Tensor& cap, const Walk& walk, const F& f) {
  const Operand operand = in_walking_order(cap, walk, const_cast<void*>(cap.const_data_ptr()));
  with_format(dtype_of(cap, "cap"), [&](auto format) {
    using Format = decltype(format);
    typename Format::Storage buffer[cpu::kBlock];
    const int64_t numel = cap.numel();
    for (int64_t begin = 0; begin < numel; begin += cpu::kBlock) {
      const int64_t n = std::min(cpu::kBlock, numel - begin);
      const auto* values = operand.read(begin, n, buffer);
      for (int64_t i = 0; i < n; ++i) f(begin + i, Format::widen(values[i]));
    }
  });
}

// The values of a cap-shaped tensor rounded to x's dtype, in walking order; borrowed where they lie so already.
class EffectiveCaps {
 public:
  EffectiveCaps(const Tensor& cap, const Walk& walk, DType dtype) {
    const Operand operand = in_walking_order(cap, walk, const_cast<void*>(cap.const_data_ptr()));
    if (dtype_of(cap, "cap") == dtype && operand.is_linear()) {
      values_ = operand.data();
      return;
    }
    with_format(dtype, [&](auto format) {
      using Format = decltype(format);
      using T = typename Format::Storage;
      owned_.reset(new unsigned char[std::max<int64_t>(1, cap.numel()) * sizeof(T)]);
      T* to = reinterpret_cast<T*>(owned_.get());
      for_each_value(cap, walk, [&](int64_t i, double value) { to[i] = Format::round(value); });
    });
    values_ = owned_.get();
  }
  const void* values() const { return values_; }

 private:
  std::unique_ptr<unsigned char[]> owned_;
  const void* values_ = nullptr;
};

void check_devices(const Tensor& cap) {
  if (!cap.is_cpu()) fail("cap: got a tensor on another device than x; expected the CPU");
}

ScalarType penalty_dtype(const Tensor& cap) {
  return cap.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void store_scalar(const Tensor& t, double value) {
  if (t.scalar_type() == ScalarType::Double)
    *static_cast<double*>(t.mutable_data_ptr()) = value;
  else
    *static_cast<float*>(t.mutable_data_ptr()) = static_cast<float>(value);
}

double load_scalar(const Tensor& t, const char* name) {
  if (t.numel() != 1) fail(std::string(name) + ": got shape " + to_string(sizes_of(t)) + "; expected one element");
  double result = 0;
  with_format(dtype_of(t, name), [&](auto format) {
    using Format = decltype(format);
    result = Format::widen(*static_cast<const typename Format::Storage*>(t.const_data_ptr()));
  });
  return result;
}

Walk any_order(const Tensor& cap) {
  Walk walk;
  walk.order.resize(cap.dim());
  std::iota(walk.order.begin(), walk.order.end(), int64_t{0});
  return walk;
}

double sum_of_squares(const Tensor& cap) {
  double sum = 0, error = 0;
  for_each_value(cap, any_order(cap), [&](int64_t, double m) { sum = cpu::two_sum(sum, m * m, &error); });
  return cpu::with_error(sum, error);
}

Tensor penalty_or_nothing(const Tensor& cap, std::optional<double> balancer) {
  if (!balancer.has_value()) return nothing(penalty_dtype(cap), cap);
  const Tensor result = empty_contiguous({}, penalty_dtype(cap), cap);
  store_scalar(result, *balancer * sum_of_squares(cap));
  return result;
}

int64_t element_size(const Tensor& t) {
  int64_t size = 0;
  with_format(dtype_of(t, "x"), [&](auto format) { size = sizeof(typename decltype(format)::Storage); });
  return size;
}

Tensor in_large_pages(Tensor t) {
  advise_huge_pages(t.mutable_data_ptr(), t.numel() * element_size(t));
  return t;
}

// As torch.empty_like, without the dispatcher where the strides can simply be taken over.
Tensor empty_like(const Tensor& t, const Operand& operand) {
  return in_large_pages(operand.is_linear() && t.numel() > 0
                            ? empty_strided(sizes_of(t), strides_of(t), t.scalar_type(), t)
                            : torch::stable::empty_like(t));
}

// The view of one call: x's shape walked in the order of its memory.
struct Call {
  Call(const Tensor& x, const Tensor& cap, int64_t dim, const Sizes& order)
      : dtype(dtype_of(x, "x")), sizes(sizes_of(x)), walk(walk_of(sizes, order, sizes_of(cap), dim)) {
    check_devices(cap);
  }
  Operand operand(const Tensor& t) const {
    return Operand(const_cast<void*>(t.const_data_ptr()), sizes, strides_of(t), walk.order);
  }
  Operand output(const Tensor& t) const { return Operand(t.mutable_data_ptr(), sizes, strides_of(t), walk.order); }
  Problem problem(const EffectiveCaps& caps) const {
    return {dtype, product(sizes), walk.layout, caps.values(), parallel_for};
  }

  DType dtype;
  Sizes sizes;
  Walk walk;
};

// Codes lie in walking order, which `order` must be: reading them in another would be silently wrong.
void check_code_order(const Walk& walk, const Sizes& sizes, const Sizes& order) {
  if (product(sizes) == 0) return;
  Sizes walked, given;
  for (const int64_t d : walk.order)
    if (sizes[d] != 1) walked.push_back(d);
  for (const int64_t d : order)
    if (sizes[d] != 1) given.push_back(d);
  if (walked != given)
    fail("order: got " + to_string(order) + "; a code for this x and cap lies in the order " + to_string(walk.order));
}

int64_t code_size(int64_t numel) { return (numel + kCodesPerByte - 1) / kCodesPerByte; }

Tensor forward(const Tensor& x, const Tensor& cap, int64_t dim) {
  const Call call(x, cap, dim, memory_order(strides_of(x)));
  const Operand from = call.operand(x);
  const Tensor y = empty_like(x, from);
  const EffectiveCaps caps(cap, call.walk, call.dtype);
  cpu::forward(call.problem(caps), from, call.output(y), nullptr);
  return y;
}

void check_writable(const Tensor& x) {
  if (overlaps_itself(sizes_of(x), strides_of(x)))
    fail("inplace: x of shape " + to_string(sizes_of(x)) + " and strides " + to_string(strides_of(x)) +
         " has several elements at one address; use inplace=False");
}

void forward_(const Tensor& x, const Tensor& cap, int64_t dim) {
  const Call call(x, cap, dim, memory_order(strides_of(x)));
  check_writable(x);
  const EffectiveCaps caps(cap, call.walk, call.dtype);
  cpu::forward(call.problem(caps), call.operand(x), call.output(x), nullptr);
}

// y is x for the in-place form.
std::tuple<Tensor, Tensor> run_extra(const Tensor& x, const Tensor& y, const Tensor& cap, int64_t dim, bool code,
                                     std::optional<double> balancer) {
  const Call call(x, cap, dim, memory_order(strides_of(y)));
  const Tensor packed =
      code ? empty_contiguous({code_size(product(call.sizes))}, ScalarType::Byte, x) : nothing(ScalarType::Byte, x);
  const Tensor penalty = penalty_or_nothing(cap, balancer);
  const EffectiveCaps caps(cap, call.walk, call.dtype);
  cpu::forward(call.problem(caps), call.operand(x), call.output(y),
               code ? static_cast<uint8_t*>(packed.mutable_data_ptr()) : nullptr);
  return {packed, penalty};
}

std::tuple<Tensor, Tensor, Tensor> forward_extra(const Tensor& x, const Tensor& cap, int64_t dim, bool code,
                                                 std::optional<double> balancer) {
  dtype_of(x, "x");
  const Tensor y = in_large_pages(torch::stable::empty_like(x));
  const auto [packed, penalty] = run_extra(x, y, cap, dim, code, balancer);
  return {y, packed, penalty};
}

std::tuple<Tensor, Tensor> forward_extra_(const Tensor& x, const Tensor& cap, int64_t dim, bool code,
                                          std::optional<double> balancer) {
  check_writable(x);
  return run_extra(x, x, cap, dim, code, balancer);
}

// What backward and tangent need to know of `saved`: the order of its elements and how to read it.
struct SavedTensor {
  SavedTensor(const Tensor& like, const char* like_name, const Tensor& saved, const Sizes& code_order)
      : is_code(saved.scalar_type() == ScalarType::Byte) {
    if (!saved.is_cpu()) fail("saved: got a tensor on another device; expected the CPU");
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
  Saved view(const Call& call, const Tensor& saved) const {
    Saved result;
    if (is_code) {
      check_code_order(call.walk, call.sizes, order);
      result.code = static_cast<const uint8_t*>(saved.const_data_ptr());
    } else {
      result.y = call.operand(saved);
    }
    return result;
  }
  Tensor empty(const Call& call, const Tensor& like, const Tensor& saved) const {
    if (is_code)
      return in_large_pages(empty_strided(call.sizes, dense_strides(call.sizes, order), like.scalar_type(), like));
    return empty_like(saved, call.operand(saved));
  }

  bool is_code;
  Sizes order;
};

Tensor cap_gradient(const Tensor& cap, const Walk& walk, const std::vector<double>& sums,
                    std::optional<double> penalty_scale) {
  const Tensor dcap = empty_contiguous(sizes_of(cap), cap.scalar_type(), cap);
  const Operand to = in_walking_order(dcap, walk, dcap.mutable_data_ptr());
  with_format(dtype_of(cap, "cap"), [&](auto format) {
    using Format = decltype(format);
    const auto put = [&](int64_t i, double value) {
      const typename Format::Storage rounded = Format::round(value);
      typename Format::Storage buffer;
      auto* at = to.target(i, 1, &buffer);
      *at = rounded;
      to.write(i, 1, at, &buffer);
    };
    if (!penalty_scale.has_value()) {
      for (size_t i = 0; i < sums.size(); ++i) put(static_cast<int64_t>(i), sums[i]);
    } else {
      for_each_value(cap, walk, [&](int64_t i, double m) { put(i, sums[i] + *penalty_scale * m); });
    }
  });
  return dcap;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& saved, const Tensor& cap, int64_t dim,
                                    const std::vector<int64_t>& order, bool need_x, bool need_cap,
                                    std::optional<double> balancer, const std::optional<Tensor>& grad_penalty) {
  const SavedTensor kept(grad, "grad", saved, order);
  const Call call(grad, cap, dim, kept.order);
  const EffectiveCaps caps(cap, call.walk, call.dtype);
  const Saved view = kept.view(call, saved);
  std::optional<double> scale;
  if (need_cap && balancer.has_value() && grad_penalty.has_value())
    scale = 2 * *balancer * load_scalar(*grad_penalty, "grad_penalty");
  const Tensor dx = need_x ? kept.empty(call, grad, saved) : nothing(grad.scalar_type(), grad);
  const Operand dx_operand = need_x ? call.output(dx) : Operand();
  std::vector<double> sums(need_cap ? call.walk.layout.caps : 0);
  cpu::backward(call.problem(caps), call.operand(grad), view, need_x ? &dx_operand : nullptr,
                need_cap ? sums.data() : nullptr);
  return {dx, need_cap ? cap_gradient(cap, call.walk, sums, scale) : nothing(cap.scalar_type(), cap)};
}

Tensor tangent(const Tensor& u, const std::optional<Tensor>& v, const Tensor& saved, const Tensor& cap, int64_t dim,
               const std::vector<int64_t>& order) {
  const SavedTensor kept(u, "u", saved, order);
  const Call call(u, cap, dim, kept.order);
  if (v.has_value() && sizes_of(*v) != sizes_of(cap))
    fail("v: got shape " + to_string(sizes_of(*v)) + "; expected the cap's, " + to_string(sizes_of(cap)));
  const EffectiveCaps caps(cap, call.walk, call.dtype);
  std::optional<EffectiveCaps> at_cap;
  if (v.has_value()) at_cap.emplace(*v, call.walk, call.dtype);
  const Saved view = kept.view(call, saved);
  const Tensor out = kept.empty(call, u, saved);
  cpu::tangent(call.problem(caps), call.operand(u), at_cap ? at_cap->values() : nullptr, view, call.output(out));
  return out;
}

std::tuple<Tensor, Tensor> saturation(const Tensor& x, const Tensor& cap, int64_t dim) {
  if (x.dim() == 0) fail("x: got 0 dimensions; expected at least one, the sample");
  const Call call(x, cap, dim, memory_order(strides_of(x)));
  cpu::SampleLayout sample{call.sizes[0], 1};
  for (size_t i = call.walk.order.size(); i-- > 0 && call.walk.order[i] != 0;)
    sample.inner *= call.sizes[call.walk.order[i]];

  Sizes counts_shape{3};
  for (const int64_t size : sizes_of(cap)) counts_shape.push_back(size);
  const Tensor counts = empty_contiguous(counts_shape, ScalarType::Long, x);
  const Tensor live = empty_contiguous({call.sizes[0]}, ScalarType::Bool, x);
  auto* live_data = static_cast<uint8_t*>(live.mutable_data_ptr());
  std::fill_n(live_data, live.numel(), uint8_t{0});
  const int64_t n = call.walk.layout.caps;
  std::vector<int64_t> inside(n, 0), capped(n, 0);
  const EffectiveCaps caps(cap, call.walk, call.dtype);
  cpu::saturation(call.problem(caps), call.operand(x), sample, inside.data(), capped.data(), live_data);

  // The counters are in walking order, the result in the order of the cap.
  const int64_t shared = n > 0 ? product(call.sizes) / n : 0;
  auto* data = static_cast<int64_t*>(counts.mutable_data_ptr());
  const Tensor one = empty_contiguous(sizes_of(cap), ScalarType::Long, x);
  for (int part = 0; part < 3; ++part) {
    const Operand to = in_walking_order(one, call.walk, data + part * n);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t value = part == kInside ? inside[i] : part == kCapped ? capped[i] : shared - inside[i] - capped[i];
      to.write(i, 1, &value, &value);
    }
  }
  return {counts, live};
}

Tensor penalty(const std::vector<Tensor>& caps, double balancer) {
  if (caps.empty()) fail("caps: got no tensor; expected at least one");
  double sum = 0, error = 0;
  bool has_double = false;
  for (const Tensor& cap : caps) {
    check_devices(cap);
    has_double = has_double || cap.scalar_type() == ScalarType::Double;
    sum = cpu::two_sum(sum, sum_of_squares(cap), &error);
  }
  const Tensor result = empty_contiguous({}, has_double ? ScalarType::Double : ScalarType::Float, caps[0]);
  store_scalar(result, balancer * cpu::with_error(sum, error));
  return result;
}

std::vector<Tensor> penalty_backward(const Tensor& grad, const std::vector<Tensor>& caps, double balancer) {
  const double scale = 2 * balancer * load_scalar(grad, "grad");
  std::vector<Tensor> result;
  result.reserve(caps.size());
  for (const Tensor& cap : caps) {
    check_devices(cap);
    const std::vector<double> zeros(cap.numel(), 0.0);
    result.push_back(cap_gradient(cap, any_order(cap), zeros, scale));
  }
  return result;
}

}  // namespace
}  // namespace dreluop

STABLE_TORCH_LIBRARY_IMPL(dreluop, CPU, m) {
  m.impl("forward", TORCH_BOX(&dreluop::forward));
  m.impl("forward_", TORCH_BOX(&dreluop::forward_));
  m.impl("forward_extra", TORCH_BOX(&dreluop::forward_extra));
  m.impl("forward_extra_", TORCH_BOX(&dreluop::forward_extra_));
  m.impl("backward", TORCH_BOX(&dreluop::backward));
  m.impl("tangent", TORCH_BOX(&dreluop::tangent));
  m.impl("saturation", TORCH_BOX(&dreluop::saturation));
  m.impl("penalty", TORCH_BOX(&dreluop::penalty));
  m.impl("penalty_backward", TORCH_BOX(&dreluop::penalty_backward));
}
