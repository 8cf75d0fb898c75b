// dreluop._autograd: the fast path, a call of capped_relu and its autograd node in the C++ of one version of torch.
// dreluop/autograd/fast_path.py says when it is available. Any call that is not clearly valid is left to Python.
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_cpp_function.h>

#include <cmath>

#include "autograd/node.h"

namespace dreluop::fast {
namespace {

bool differentiable(const Arguments& a) {
  const auto wants = [](const Optional& t) { return t.has_value() && t->requires_grad(); };
  return at::GradMode::is_enabled() &&
         (a.x.requires_grad() || a.cap.requires_grad() || wants(a.bias) || wants(a.residual));
}

// By addresses: memory of one array may have several storages.
std::pair<const char*, const char*> memory_of(const Tensor& t) {
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += t.stride(d) * (t.size(d) - 1);
  const auto* const begin = static_cast<const char*>(t.const_data_ptr());
  return {begin, begin + (last + 1) * static_cast<int64_t>(t.element_size())};
}

// Whether they surely are: where their memory interleaves Python is asked.
bool apart(const Tensor& x, const Tensor& other) {
  if (x.numel() == 0 || other.numel() == 0) return true;
  const auto [x_begin, x_end] = memory_of(x);
  const auto [begin, end] = memory_of(other);
  return x_end <= begin || end <= x_begin;
}

// Whether autograd lets x be written over, as dreluop._internal.checks.writable_in_place has it.
bool recordable_in_place(const Tensor& x, bool in_graph) {
  if (at::GradMode::is_enabled() && x.requires_grad() && (x.is_leaf() || (x.is_view() && x._base().is_leaf())))
    return false;
  using torch::autograd::CreationMeta;
  return !in_graph || !x.is_view() ||
         torch::autograd::impl::get_view_autograd_meta(x)->get_creation_meta() == CreationMeta::DEFAULT;
}

// Nothing that writable_in_place refuses.
bool plainly_writable(const Arguments& a, bool in_graph) {
  if (a.x.is_inference() || !a.x.has_storage() || !recordable_in_place(a.x, in_graph)) return false;
  const auto fine = [&](const Tensor& other) {
    return other.has_storage() && apart(a.x, other) && !(in_graph && other.is_inference());
  };
  return fine(a.cap) && (!a.bias.has_value() || fine(*a.bias)) && (!a.residual.has_value() || fine(*a.residual));
}

NodePointer node_for(const Arguments& a) {
  const NodePointer owner = new_node();
  auto* const node = static_cast<CappedReLUNode*>(owner.get());
  torch::autograd::edge_list edges;
  edges.reserve(4);
  edges.push_back(torch::autograd::impl::gradient_edge(a.x));
  edges.push_back(torch::autograd::impl::gradient_edge(a.cap));
  if (a.bias.has_value()) edges.push_back(torch::autograd::impl::gradient_edge(*a.bias));
  if (a.residual.has_value()) edges.push_back(torch::autograd::impl::gradient_edge(*a.residual));
  node->set_next_edges(std::move(edges));
  node->numbers.dim = a.dim;
  node->numbers.balancer = a.balancer;
  node->numbers.has_bias = a.bias.has_value();
  node->numbers.has_residual = a.residual.has_value();
  node->numbers.zeroed = a.zeroed;
  return owner;
}

void save(CappedReLUNode* node, const Arguments& a, const Results& results) {
  try {
    // Of a view too, y comes back as this node's result.
    node->saved = a.mask ? SavedVariable(results.mask, false) : SavedVariable(results.y, true);
    node->cap = SavedVariable(a.cap, false);
    // For its shape and dtype.
    if (a.bias.has_value() && a.bias->requires_grad()) node->bias = SavedVariable(*a.bias, false);
  } catch (...) {
    // Of a hook, or where a checkpoint has all that it wants: what is saved would hold y, and y the node.
    node->release_variables();
    throw;
  }
}

// As Function::apply does.
void record(const Arguments& a, Results* results) {
  const NodePointer owner = node_for(a);
  // After the edges: a view that is asked for its history at a new version makes itself one.
  if (a.inplace) a.x.unsafeGetTensorImpl()->bump_version();
  auto* const node = static_cast<CappedReLUNode*>(owner.get());
  node->numbers.is_mask = a.mask;
  if (a.mask) node->numbers.order = mask_order(results->y, a.cap, a.dim);
  if (a.inplace)
    torch::autograd::impl::rebase_history(results->y, {owner, node->add_input_metadata(results->y)});
  else
    torch::autograd::set_history(results->y, owner);
  if (a.balancer.has_value()) {
    // The penalty of a frozen cap must not require a gradient because x does.
    if (a.cap.requires_grad())
      torch::autograd::set_history(results->penalty, owner);
    else
      node->add_input_metadata(results->penalty);
  }
  save(node, a, *results);
}

std::optional<Results> capped_relu(const Arguments& a) {
  const bool in_graph = differentiable(a);
  // Autograd refuses a second result of a function that writes over a view.
  if (a.inplace && (!plainly_writable(a, in_graph) || (in_graph && a.balancer.has_value() && a.x.is_view())))
    return std::nullopt;
  Arguments asked = a;
  asked.mask = a.mask && in_graph;
  auto results = forward_unless_refused(asked);
  if (!results.has_value()) return std::nullopt;
  if (in_graph)
    record(asked, &*results);
  else if (a.inplace)
    a.x.unsafeGetTensorImpl()->bump_version();
  return results;
}

struct Unlocked {
  PyThreadState* const state = PyEval_SaveThread();
  ~Unlocked() { PyEval_RestoreThread(state); }
};

// Whether it has sizes and strides to be looked at.
bool strided(const Tensor& t) { return t.layout() == at::kStrided && !t.is_nested(); }

// False where it is neither None nor a plain tensor on the device.
bool read(PyObject* object, const at::Device& device, Optional* to) {
  if (object == Py_None) return true;
  if (!THPVariable_CheckExact(object)) return false;
  *to = THPVariable_Unpack(object);
  return strided(**to) && (*to)->device() == device;
}

bool read(PyObject* object, std::optional<double>* to) {
  if (object == Py_None) return true;
  if (!PyFloat_CheckExact(object)) return false;
  *to = PyFloat_AS_DOUBLE(object);
  return **to >= 0 && std::isfinite(**to);
}

// Which of two words it is.
bool read(PyObject* object, const char* no, const char* yes, bool* is_yes) {
  if (!PyUnicode_CheckExact(object)) return false;
  *is_yes = PyUnicode_CompareWithASCIIString(object, no) != 0;
  return !*is_yes || PyUnicode_CompareWithASCIIString(object, yes) == 0;
}

bool read_zeroed(PyObject* above, PyObject* nan, int64_t* zeroed) {
  bool zero_above = false, zero_nan = false;
  if (!read(above, "cap", "zero", &zero_above) || !read(nan, "propagate", "zero", &zero_nan)) return false;
  *zeroed = (zero_above ? kZeroAbove : 0) | (zero_nan ? kZeroNaN : 0);
  return true;
}

enum : Py_ssize_t { kX, kCap, kDim, kInplace, kSave, kBalancer, kBias, kResidual, kAbove, kNaN, kCount };

// y, or (y, penalty); None for what is not a common call.
PyObject* call(PyObject*, PyObject* const* given, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != kCount || !THPVariable_CheckExact(given[kX]) || !THPVariable_CheckExact(given[kCap]) ||
      !PyLong_CheckExact(given[kDim]) || !PyBool_Check(given[kInplace]) || !nothing_between())
    Py_RETURN_NONE;
  const Tensor &x = THPVariable_Unpack(given[kX]), &cap = THPVariable_Unpack(given[kCap]);
  int overflow = 0;
  Arguments a{
      x, cap, PyLong_AsLongLongAndOverflow(given[kDim], &overflow), false, {}, {}, {}, 0, given[kInplace] == Py_True};
  const at::Device device = x.device();
  if (overflow != 0 || !strided(x) || !strided(cap) || cap.device() != device ||
      !read(given[kSave], "output", "mask", &a.mask) || !read_zeroed(given[kAbove], given[kNaN], &a.zeroed) ||
      !read(given[kBalancer], &a.balancer) || !read(given[kBias], device, &a.bias) ||
      !read(given[kResidual], device, &a.residual))
    Py_RETURN_NONE;
  std::optional<Results> results;
  {
    const Unlocked unlocked;
    results = capped_relu(a);
  }
  if (!results.has_value()) Py_RETURN_NONE;
  if (!a.balancer.has_value()) return THPVariable_Wrap(std::move(results->y));
  const THPObjectPtr y(THPVariable_Wrap(std::move(results->y))), penalty(THPVariable_Wrap(std::move(results->penalty)));
  return PyTuple_Pack(2, y.get(), penalty.get());
  END_HANDLE_TH_ERRORS
}

PyObject* saved_tensor(PyObject* self, void* index) {
  HANDLE_TH_ERRORS
  const auto& node = reinterpret_cast<torch::autograd::THPCppFunction*>(self)->cdata;
  const auto saved = static_cast<CappedReLUNode*>(node.get())->unpacked();
  return THPVariable_Wrap(saved[index == nullptr ? 0 : 1]);
  END_HANDLE_TH_ERRORS
}

// torch's macros name its functions without their namespace.
using namespace torch::autograd;

PyGetSetDef node_properties[] = {THP_FUNCTION_DEFAULT_PROPERTIES,
                                 // Named as those of torch's own nodes: y or the mask, and the cap.
                                 {"_saved_result", saved_tensor, nullptr, nullptr, nullptr},
                                 {"_saved_cap", saved_tensor, nullptr, nullptr, node_properties},
                                 {nullptr, nullptr, nullptr, nullptr, nullptr}};

void keep(PyObject** place, PyObject* object) {
  Py_INCREF(object);
  Py_XSETREF(*place, object);
}

PyObject* set_python(PyObject*, PyObject* arguments) {
  PyObject *backward = nullptr, *raise = nullptr;
  if (!PyArg_ParseTuple(arguments, "OO", &backward, &raise)) return nullptr;
  keep(&backward_in_python, backward);
  keep(&raise_as_of_torch, raise);
  Py_RETURN_NONE;
}

PyObject* set_cpu_kernels(PyObject*, PyObject* address) {
  const auto* const table = static_cast<const cpu::KernelTable*>(PyLong_AsVoidPtr(address));
  if (PyErr_Occurred() != nullptr) return nullptr;
  const bool fits = table != nullptr && table->fits();
  cpu_kernels = fits ? table : nullptr;
  return PyBool_FromLong(fits);
}

PyMethodDef functions[] = {
    {"capped_relu", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)), METH_FASTCALL,
     "capped_relu(x, cap, dim, inplace, save, balancer, bias, residual, above, nan): what dreluop.capped_relu returns, "
     "or None for what is not a common call."},
    {"set_python", set_python, METH_VARARGS,
     "set_python(backward, raise_as_of_torch): what backward asks where it is not the usual one (called with the "
     "fields of BackwardCall), and where it failed (called with a RuntimeError)."},
    {"set_cpu_kernels", set_cpu_kernels, METH_O,
     "set_cpu_kernels(address): the kernels that plain CPU tensors get without the dispatcher; 0 for none. Returns "
     "whether they are of the same build."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module{PyModuleDef_HEAD_INIT,
                   "dreluop._autograd",
                   "Common calls of capped_relu with their autograd node.",
                   -1,
                   functions,
                   nullptr,
                   nullptr,
                   nullptr,
                   nullptr};

PyObject* make_module() {
  HANDLE_TH_ERRORS
  dispatched();
  static PyTypeObject type{};
  torch::autograd::_initFunctionPyTypeObject(type, "dreluop.CappedReLUBackward", node_properties, nullptr);
  torch::autograd::registerCppFunction(typeid(CappedReLUNode), &type);
  return PyModule_Create(&module);
  END_HANDLE_TH_ERRORS
}

}  // namespace
}  // namespace dreluop::fast

PyMODINIT_FUNC PyInit__autograd() { return dreluop::fast::make_module(); }
