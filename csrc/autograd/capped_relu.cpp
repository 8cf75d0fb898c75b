// dreluop._autograd: the usual call of capped_relu and its autograd node, in the C++ of one version of torch.
// dreluop/autograd/fast_path.py says when it is available. Any other call falls through to Python.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <optional>
#include <stdexcept>
#include <tuple>

namespace dreluop {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Forward = Tensor(const Tensor&, const Tensor&, int64_t, const std::optional<Tensor>&,
                       const std::optional<Tensor>&);
using ForwardInPlace = void(Tensor&, const Tensor&, int64_t, const std::optional<Tensor>&,
                            const std::optional<Tensor>&);
using Backward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, int64_t,
                                                    at::IntArrayRef, bool, bool, std::optional<double>,
                                                    const std::optional<Tensor>&, const std::optional<Tensor>&);

template <class Signature>
c10::TypedOperatorHandle<Signature> found(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Those of the default rule.
const auto& forward_operator() {
  static const auto handle = found<Forward>("dreluop::capped_relu");
  return handle;
}

const auto& in_place_operator() {
  static const auto handle = found<ForwardInPlace>("dreluop::capped_relu_");
  return handle;
}

const auto& backward_operator() {
  static const auto handle = found<Backward>("dreluop::capped_relu_backward");
  return handle;
}

constexpr const char* kNodeName = "CappedReLUBackward";

// dreluop.autograd.fast_path.plain_backward, with the operators of the default rule; and
// dreluop._internal.errors.raise_as_of_torch. Never freed: nodes outlive the module.
PyObject* backward_in_python = nullptr;
PyObject* raise_as_of_torch = nullptr;

// No mode, functorch transform, tracer, inference mode or level of forward mode stands between a caller and the
// kernels. Most of them change what the dispatcher includes in every call; function modes and forward mode do not.
// Autocast changes only what it excludes, and is nothing to the operators.
bool nothing_between() {
  return c10::impl::tls_local_dispatch_key_set().included_ == c10::default_included_set &&
         !at::impl::torch_function_mode_enabled() && !torch::autograd::ForwardADLevel::try_get_by_idx(0);
}

[[noreturn]] void throw_python_error() {
  python_error error;
  error.persist();
  throw error;
}

Tensor unpack_or_nothing(PyObject* object) { return object == Py_None ? Tensor() : THPVariable_Unpack(object); }

// Raises what torch has for memory that is not there, if that is what the words say.
void raise_if_out_of_memory(const char* words) {
  const pybind11::gil_scoped_acquire locked;
  const THPObjectPtr error(PyObject_CallFunction(PyExc_RuntimeError, "s", words));
  if (!error || !THPObjectPtr(PyObject_CallFunctionObjArgs(raise_as_of_torch, error.get(), nullptr)))
    throw_python_error();
}

variable_list in_python(const Tensor& grad, const variable_list& saved, int64_t dim, bool need_x, bool need_cap) {
  const pybind11::gil_scoped_acquire locked;
  THPObjectPtr result(PyObject_CallFunction(
      backward_in_python, "NNNLOO", THPVariable_Wrap(grad), THPVariable_Wrap(saved[0]), THPVariable_Wrap(saved[1]),
      static_cast<long long>(dim), need_x ? Py_True : Py_False, need_cap ? Py_True : Py_False));
  PyObject *dx = nullptr, *dcap = nullptr;
  if (!result || !PyArg_ParseTuple(result.get(), "OO", &dx, &dcap)) throw_python_error();
  return {unpack_or_nothing(dx), unpack_or_nothing(dcap)};
}

struct CappedReLU {
  // With tensors of a tracer, backward asks Python, which can be traced.
  static constexpr bool is_traceable = true;

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const Tensor& grad = grads[0];
    const variable_list saved = context->get_saved_variables();
    const int64_t dim = context->saved_data["dim"].toInt();
    const bool need_x = context->needs_input_grad(0), need_cap = context->needs_input_grad(1);
    if (!at::GradMode::is_enabled() && nothing_between()) {
      try {
        const at::AutoDispatchBelowAutograd below;
        auto [dx, dcap, nothing] = backward_operator().call(grad, saved[0], saved[1], dim, {}, need_x, need_cap,
                                                            std::nullopt, std::nullopt, std::nullopt);
        return {need_x ? std::move(dx) : Tensor(), need_cap ? std::move(dcap) : Tensor()};
      } catch (const std::logic_error&) {
        // A refusal, which comes again: Python has the class of exception for it.
      } catch (const std::runtime_error& error) {
        raise_if_out_of_memory(error.what());
        throw;
      }
    }
    return in_python(grad, saved, dim, need_x, need_cap);
  }
};

struct CappedReLUNode : torch::autograd::CppNode<CappedReLU> {
  std::string name() const override { return kNodeName; }
};

// torch 2.11 counts nodes by std::shared_ptr, 2.13 by an intrusive pointer.
template <class Pointer = decltype(torch::autograd::Edge::function)>
Pointer counted(CappedReLUNode* node) {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>)
    return Pointer(node, [](auto* unused) { deleteNode(unused); });
  else
    return Pointer::unsafe_steal_from_new(node);
}

bool differentiable(const Tensor& x, const Tensor& cap) {
  return at::GradMode::is_enabled() && (x.requires_grad() || cap.requires_grad());
}

// By addresses: memory of one array may have several storages. Where they are not known Python is asked.
bool apart(const Tensor& x, const Tensor& cap) {
  if (x.numel() == 0 || cap.numel() == 0) return true;
  int64_t last = 0;
  for (int64_t d = 0; d < cap.dim(); ++d) last += cap.stride(d) * (cap.size(d) - 1);
  const auto* const begin = static_cast<const char*>(x.const_data_ptr());
  const auto* const other = static_cast<const char*>(cap.const_data_ptr());
  return begin + x.nbytes() <= other || other + (last + 1) * static_cast<int64_t>(cap.element_size()) <= begin;
}

// Nothing that dreluop._internal.checks.writable_in_place refuses, nor a view, which has a history of its own.
bool plainly_writable(const Tensor& x, const Tensor& cap) {
  const bool wanted_leaf = at::GradMode::is_enabled() && x.is_leaf() && x.requires_grad();
  return !wanted_leaf && !x.is_view() && !x.is_inference() && x.is_non_overlapping_and_dense() && x.has_storage() &&
         cap.has_storage() && apart(x, cap) && !(differentiable(x, cap) && cap.is_inference());
}

// y is x where it was written in place.
Tensor capped_relu(Tensor x, const Tensor& cap, int64_t dim, bool inplace) {
  const bool in_graph = differentiable(x, cap);
  Tensor y = x;
  {
    const at::AutoDispatchBelowAutograd below;
    if (inplace)
      in_place_operator().call(x, cap, dim, std::nullopt, std::nullopt);
    else
      y = forward_operator().call(x, cap, dim, std::nullopt, std::nullopt);
  }
  if (!in_graph) return y;
  // As Function::apply does, for one result that is no view, and an argument only where that was written in place.
  auto* const node = new CappedReLUNode();
  const auto owner = counted(node);
  node->set_ctx_grad_fn(owner);
  node->set_next_edges(torch::autograd::collect_next_edges(x, cap));
  node->is_variable_input_ = {true, true};
  node->output_info_.emplace_back(y);
  node->ctx_.saved_data["dim"] = dim;
  if (inplace)
    torch::autograd::impl::rebase_history(y, {owner, node->add_input_metadata(y)});
  else
    torch::autograd::set_history(y, owner);
  node->ctx_.save_for_backward({y, cap});
  try {
    node->save_variables_to_ctx();
  } catch (...) {
    // Of a hook, or where a checkpoint has all that it wants: what is to be saved would hold y, and y the node.
    node->ctx_.save_for_backward({});
    node->release_variables();
    throw;
  }
  return y;
}

// capped_relu(x, cap, dim, inplace): y; None for what is not the usual call.
PyObject* call(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 4 || !THPVariable_CheckExact(arguments[0]) || !THPVariable_CheckExact(arguments[1]) ||
      !PyLong_CheckExact(arguments[2]) || !PyBool_Check(arguments[3]) || !nothing_between())
    Py_RETURN_NONE;
  const Tensor &x = THPVariable_Unpack(arguments[0]), &cap = THPVariable_Unpack(arguments[1]);
  int overflow = 0;
  const int64_t dim = PyLong_AsLongLongAndOverflow(arguments[2], &overflow);
  const bool inplace = arguments[3] == Py_True;
  if (overflow != 0 || x.device() != cap.device() || (inplace && !plainly_writable(x, cap))) Py_RETURN_NONE;
  Tensor y;
  try {
    const pybind11::gil_scoped_release unlocked;
    y = capped_relu(x, cap, dim, inplace);
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

PyObject* saved_tensor(PyObject* self, void* index) {
  HANDLE_TH_ERRORS
  const auto& node = reinterpret_cast<torch::autograd::THPCppFunction*>(self)->cdata;
  const auto saved = static_cast<CappedReLUNode*>(node.get())->ctx_.get_saved_variables();
  return THPVariable_Wrap(saved[index == nullptr ? 0 : 1]);
  END_HANDLE_TH_ERRORS
}

// torch's macros name its functions without their namespace.
using namespace torch::autograd;

PyGetSetDef node_properties[] = {THP_FUNCTION_DEFAULT_PROPERTIES,
                                 // Named as those of torch's own nodes.
                                 {"_saved_result", saved_tensor, nullptr, nullptr, nullptr},
                                 {"_saved_cap", saved_tensor, nullptr, nullptr, node_properties},
                                 {nullptr, nullptr, nullptr, nullptr, nullptr}};

// set_python(backward, raise_as_of_torch): before the first call.
PyObject* set_python(PyObject*, PyObject* arguments) {
  PyObject *backward = nullptr, *raise = nullptr;
  if (!PyArg_ParseTuple(arguments, "OO", &backward, &raise)) return nullptr;
  Py_INCREF(backward);
  Py_XSETREF(backward_in_python, backward);
  Py_INCREF(raise);
  Py_XSETREF(raise_as_of_torch, raise);
  Py_RETURN_NONE;
}

PyMethodDef functions[] = {
    {"capped_relu", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)), METH_FASTCALL,
     "capped_relu(x, cap, dim, inplace): y, or None for what is not the usual call."},
    {"set_python", set_python, METH_VARARGS,
     "set_python(backward, raise_as_of_torch): what backward asks where it is not the usual one (called with grad, y, "
     "cap, dim, need_x, need_cap), and where it failed (called with a RuntimeError)."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module{PyModuleDef_HEAD_INIT,
                   "dreluop._autograd",
                   "The usual call of capped_relu with its autograd node.",
                   -1,
                   functions,
                   nullptr,
                   nullptr,
                   nullptr,
                   nullptr};

PyObject* make_module() {
  HANDLE_TH_ERRORS
  forward_operator();
  in_place_operator();
  backward_operator();
  static PyTypeObject type{};
  torch::autograd::_initFunctionPyTypeObject(type, "dreluop.CappedReLUBackward", node_properties, nullptr);
  torch::autograd::registerCppFunction(typeid(CappedReLUNode), &type);
  return PyModule_Create(&module);
  END_HANDLE_TH_ERRORS
}

}  // namespace
}  // namespace dreluop

PyMODINIT_FUNC PyInit__autograd() { return dreluop::make_module(); }
