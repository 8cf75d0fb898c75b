// What the fast path computes with: the operators by the dispatcher, or past it on plain CPU tensors.
#pragma once

// The operators of torch/operators.h on tensors of this torch.
#define DRELUOP_ATEN
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cpu/kernel_table.h"
#include "torch/huge_pages.h"
#include "torch/operators.h"

namespace dreluop::fast {

using Optional = std::optional<Tensor>;

// Those of dreluop.ops.call.Call.
struct Arguments {
  const Tensor &x, &cap;
  int64_t dim;
  bool mask;
  std::optional<double> balancer;
  Optional bias, residual;
  int64_t zeroed;
  bool inplace;
};

// Undefined where not asked for.
struct Results {
  Tensor y, mask, penalty;
};

// Those of dreluop.ops.call.BackwardCall.
struct BackwardArguments {
  Tensor grad, saved, cap;
  int64_t dim;
  const std::vector<int64_t>& order;
  bool need_x, need_cap;
  std::optional<double> balancer;
  Optional grad_penalty, bias;
  int64_t zeroed;
};

struct Gradients {
  Tensor x, cap, bias;
};

// Null where the compiled operators do not serve the CPU.
inline const cpu::KernelTable* cpu_kernels = nullptr;

struct Cpu {
  using Problem = cpu::Problem;
  static constexpr bool kCopiesCaps = false;

  explicit Cpu(const Tensor&) {}

  static Tensor fresh(Tensor t) {
    advise_huge_pages(t.mutable_data_ptr(), static_cast<int64_t>(t.nbytes()));
    return t;
  }

  Problem problem() const {
    Problem problem;
    problem.parallel_for = cpu_kernels->parallel_for;
    return problem;
  }

  void run(const Problem& problem, const Forward& pass) const { cpu_kernels->forward(problem, pass); }
  void run(const Problem& problem, const Backward& pass) const { cpu_kernels->backward(problem, pass); }
};

// Of the default rule.
template <class Signature>
c10::TypedOperatorHandle<Signature> found(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

struct Dispatched {
  using Forward = Tensor(const Tensor&, const Tensor&, int64_t, const Optional&, const Optional&, int64_t);
  c10::TypedOperatorHandle<Forward> forward = found<Forward>("dreluop::capped_relu");
  using InPlace = void(Tensor&, const Tensor&, int64_t, const Optional&, const Optional&, int64_t);
  c10::TypedOperatorHandle<InPlace> in_place = found<InPlace>("dreluop::capped_relu_");
  using WithAux = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, int64_t, bool, std::optional<double>,
                                                     const Optional&, const Optional&, int64_t);
  c10::TypedOperatorHandle<WithAux> with_aux = found<WithAux>("dreluop::capped_relu_with_aux");
  using WithAuxInPlace = std::tuple<Tensor, Tensor>(Tensor&, const Tensor&, int64_t, bool, std::optional<double>,
                                                    const Optional&, const Optional&, int64_t);
  c10::TypedOperatorHandle<WithAuxInPlace> with_aux_in_place = found<WithAuxInPlace>("dreluop::capped_relu_with_aux_");
  using Backward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, int64_t,
                                                      at::IntArrayRef, bool, bool, std::optional<double>,
                                                      const Optional&, const Optional&, int64_t);
  c10::TypedOperatorHandle<Backward> backward = found<Backward>("dreluop::capped_relu_backward");
};

inline const Dispatched& dispatched() {
  static const Dispatched handles;
  return handles;
}

// Nothing but the kernels of the CPU has to do with it.
inline bool plain_on_cpu(const Tensor& t) {
  constexpr c10::DispatchKeySet above =
      c10::autograd_dispatch_keyset_with_ADInplaceOrView | c10::autocast_dispatch_keyset;
  return (t.key_set() - above) == c10::DispatchKeySet(c10::DispatchKey::CPU);
}

inline bool plain_on_cpu(const Optional& t) { return !t.has_value() || plain_on_cpu(*t); }

// Where a profiler is to see the operators, they are called by name.
template <class... Tensors>
bool past_dispatcher(const Tensors&... tensors) {
  return cpu_kernels != nullptr && (plain_on_cpu(tensors) && ...) &&
         !at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION).has_value();
}

inline Tensor or_undefined(Optional&& t) { return t.has_value() ? std::move(*t) : Tensor(); }

inline Results by_dispatcher(const Arguments& a) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const Dispatched& call = dispatched();
  Tensor y = a.x, mask, penalty;
  if (a.mask || a.balancer.has_value()) {
    if (a.inplace)
      std::tie(mask, penalty) =
          call.with_aux_in_place.call(y, a.cap, a.dim, a.mask, a.balancer, a.bias, a.residual, a.zeroed);
    else
      std::tie(y, mask, penalty) =
          call.with_aux.call(a.x, a.cap, a.dim, a.mask, a.balancer, a.bias, a.residual, a.zeroed);
  } else if (a.inplace) {
    call.in_place.call(y, a.cap, a.dim, a.bias, a.residual, a.zeroed);
  } else {
    y = call.forward.call(a.x, a.cap, a.dim, a.bias, a.residual, a.zeroed);
  }
  return {std::move(y), a.mask ? mask : Tensor(), a.balancer.has_value() ? penalty : Tensor()};
}

inline Results forward(const Arguments& a) {
  if (past_dispatcher(a.x, a.cap, a.bias, a.residual)) {
    try {
      auto [y, mask, penalty] =
          Operators<Cpu>::activate(a.x, a.cap, a.dim, a.mask, a.balancer, a.bias, a.residual, a.zeroed, a.inplace);
      return {std::move(y), or_undefined(std::move(mask)), or_undefined(std::move(penalty))};
    } catch (const NoMemory&) {
    }
  }
  return by_dispatcher(a);
}

inline Gradients backward(const BackwardArguments& a) {
  if (past_dispatcher(a.grad, a.saved, a.cap, a.grad_penalty, a.bias)) {
    try {
      auto [x, cap, bias] = Operators<Cpu>::gradients(a.grad, a.saved, a.cap, a.dim, a.order, a.need_x, a.need_cap,
                                                      a.balancer, a.grad_penalty, a.bias, a.zeroed);
      return {or_undefined(std::move(x)), or_undefined(std::move(cap)), or_undefined(std::move(bias))};
    } catch (const NoMemory&) {
    }
  }
  const at::AutoDispatchBelowAutograd below;
  auto [x, cap, bias] = dispatched().backward.call(a.grad, a.saved, a.cap, a.dim, a.order, a.need_x, a.need_cap,
                                                   a.balancer, a.grad_penalty, a.bias, a.zeroed);
  return {a.need_x ? x : Tensor(), a.need_cap ? cap : Tensor(), a.bias.has_value() ? bias : Tensor()};
}

// The order of the dimensions in the mask of a call.
inline std::vector<int64_t> mask_order(const Tensor& y, const Tensor& cap, int64_t dim) {
  const DimVector order = traversal_of(sizes_of(y), memory_order(strides_of(y)), sizes_of(cap), dim).order;
  return {order.begin(), order.end()};
}

}  // namespace dreluop::fast
