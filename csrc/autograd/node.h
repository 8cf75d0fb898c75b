// The autograd node of a call.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <mutex>
#include <string>
#include <type_traits>

#include "autograd/python.h"

namespace dreluop::fast {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using torch::dynamo::autograd::PackedArgs;

constexpr const char* kNodeName = "CappedReLUBackward";
// torch 2.11 counts nodes by std::shared_ptr, 2.13 by an intrusive pointer.
using NodePointer = decltype(torch::autograd::Edge::function);

// No mode, functorch transform, tracer, inference mode or level of forward mode stands between a caller and the
// kernels. Most of them change what the dispatcher includes in every call; function modes and forward mode do not.
// Autocast changes only what it excludes, and is nothing to the operators.
inline bool nothing_between() {
  return c10::impl::tls_local_dispatch_key_set().included_ == c10::default_included_set &&
         !at::impl::torch_function_mode_enabled() && !torch::autograd::ForwardADLevel::try_get_by_idx(0);
}

// The numbers of a call that its backward needs.
struct Numbers {
  int64_t dim = 1;
  std::optional<double> balancer;
  bool is_mask = false;  // what is saved
  std::vector<int64_t> order;
  bool has_bias = false, has_residual = false;
  int64_t zeroed = 0;

  // With nothing but x and the cap, a gradient that is absent counts as zero (torch.autograd.Function's default).
  bool absent_is_zero() const { return !has_bias && !has_residual && !balancer.has_value() && !is_mask; }
};

// Which arguments want a gradient.
struct Needs {
  bool x, cap, bias, residual;
};

inline Gradients gradients(const BackwardArguments& a) {
  if (!at::GradMode::is_enabled() && nothing_between() && a.grad.defined()) {
    try {
      return backward(a);
    } catch (const std::logic_error&) {
      // A refusal, which comes again: Python has the class of exception for it.
    } catch (const std::runtime_error& error) {
      raise_if_out_of_memory(error.what());
      throw;
    }
  }
  return gradients_in_python(a);
}

// For each edge of the node. ``grads``: of y, and of the penalty if there is one.
inline variable_list to_edges(const variable_list& grads, variable_list saved, const Numbers& numbers, Needs needs) {
  const bool added = numbers.has_bias || numbers.has_residual;
  const Tensor grad_penalty = numbers.balancer.has_value() ? grads[1] : Tensor();
  Gradients found;
  if (grads[0].defined() || (grad_penalty.defined() && needs.cap)) {
    BackwardArguments arguments{
        grads[0],  saved[0],         saved[1],     numbers.dim,  numbers.order, needs.x || needs.residual,
        needs.cap, numbers.balancer, std::nullopt, std::nullopt, numbers.zeroed};
    if (grad_penalty.defined()) arguments.grad_penalty = grad_penalty;
    if (needs.bias) arguments.bias = saved[2];
    found = gradients(arguments);
  }
  variable_list results{needs.x ? found.x : Tensor(), needs.cap ? found.cap : Tensor()};
  if (added) {
    if (numbers.has_bias) results.push_back(needs.bias ? found.bias : Tensor());
    if (numbers.has_residual) results.push_back(needs.residual ? found.x : Tensor());
  }
  return results;
}

template <class SomeNode, class Pointer = NodePointer>
Pointer pointer_to(SomeNode* node) {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>)
    return node->shared_from_this();
  else
    return Pointer::unsafe_reclaim_from_nonowning(node);
}

class CappedReLUNode : public torch::autograd::Node {
 public:
  std::string name() const override { return kNodeName; }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined() && numbers.absent_is_zero()) grads[0] = input_metadata(0).zeros_like();
    return to_edges(grads, unpacked(), numbers, needs());
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    released_ = true;
    saved.reset_data();
    cap.reset_data();
    bias.reset_data();
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(saved, !numbers.is_mask);
    args.collect(cap, false);
    args.collect(bias, false);
    args.collect(numbers.dim);
    args.collect(numbers.balancer);
    args.collect(numbers.is_mask);
    args.collect(numbers.order);
    args.collect(numbers.has_bias);
    args.collect(numbers.has_residual);
    args.collect(numbers.zeroed);
  }

  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override;

  // y or the mask, the cap, and the bias if it wants a gradient.
  variable_list unpacked() {
    TORCH_CHECK(!released_, torch::autograd::ERR_BACKWARD_TWICE);
    variable_list tensors{saved.unpack(pointer_to(this)), cap.unpack()};
    if (Tensor t = bias.unpack(); t.defined()) tensors.push_back(std::move(t));
    return tensors;
  }

  SavedVariable saved, cap, bias;
  Numbers numbers;

 private:
  bool released_ = false;

  Needs needs() const {
    const size_t residual = numbers.has_bias ? 3 : 2;
    return {task_should_compute_output(0), task_should_compute_output(1),
            numbers.has_bias && task_should_compute_output(2),
            numbers.has_residual && task_should_compute_output(residual)};
  }
};

template <class Pointer = NodePointer>
Pointer new_node(CappedReLUNode* node = new CappedReLUNode()) {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>)
    return Pointer(node, [](auto* unused) { deleteNode(unused); });
  else
    return Pointer::unsafe_steal_from_new(node);
}

// What compiled autograd calls: the backward of a node whose state is in the arguments.
inline variable_list apply_functional(const variable_list& grads, const std::vector<c10::IValue>& packed) {
  PackedArgs args(packed);
  auto saved = args.unpack<std::vector<Tensor>>();
  Numbers numbers;
  numbers.dim = args.unpack<int64_t>();
  numbers.balancer = args.unpack<std::optional<double>>();
  numbers.is_mask = args.unpack<bool>();
  numbers.order = args.unpack<std::vector<int64_t>>();
  numbers.has_bias = args.unpack<bool>();
  numbers.has_residual = args.unpack<bool>();
  numbers.zeroed = args.unpack<int64_t>();
  const auto needs = args.unpack<std::vector<bool>>();
  variable_list given = grads;
  if (!given[0].defined() && numbers.absent_is_zero()) given[0] = at::zeros_like(saved[0]);
  return to_edges(given, std::move(saved), numbers, {needs[0], needs[1], needs[2], needs[3]});
}

inline variable_list CappedReLUNode::apply_with_saved(const variable_list& grads,
                                                      torch::dynamo::autograd::SwapSavedVariables& swap) {
  swap.before(saved);
  swap.before(cap);
  swap.before(bias);
  const Needs wanted = needs();
  PackedArgs args;
  args.pack(std::vector<Tensor>(unpacked()));
  args.pack(numbers.dim);
  args.pack(numbers.balancer);
  args.pack(numbers.is_mask);
  args.pack(numbers.order);
  args.pack(numbers.has_bias);
  args.pack(numbers.has_residual);
  args.pack(numbers.zeroed);
  args.pack(std::vector<bool>{wanted.x, wanted.cap, wanted.bias, wanted.residual});
  std::vector<at::TypePtr> schema;
  for (const c10::IValue& value : args.vec())
    schema.push_back(value.isTensor() ? at::TypePtr(at::TensorType::get()) : value.type());
  const auto metadata =
      torch::dynamo::autograd::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
          torch::dynamo::autograd::get_input_metadata(next_edges()));
  const auto& compiler = torch::dynamo::autograd::getPyCompilerInterface();
  // Bound anew each time: the schema depends on what is saved.
  const std::string function = compiler->bind_function(swap.get_py_compiler(), kNodeName, apply_functional, schema,
                                                       /*is_custom_function*/ true, /*is_traceable*/ true);
  auto results =
      compiler->call_function(swap.get_py_compiler(), "apply_functional", function, grads, args.vec(), metadata);
  swap.after(saved);
  swap.after(cap);
  swap.after(bias);
  return results;
}

}  // namespace dreluop::fast
