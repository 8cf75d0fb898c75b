// What the fast path asks of Python: derivatives of any kind, and torch's exception for memory that is not there.
#pragma once

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/object_ptr.h>

#include <optional>

#include "autograd/kernels.h"

namespace dreluop::fast {

// dreluop.autograd.fast_path.backward_in_python and dreluop._internal.errors.raise_as_of_torch. Never freed: nodes
// outlive the module.
inline PyObject* backward_in_python = nullptr;
inline PyObject* raise_as_of_torch = nullptr;

[[noreturn]] inline void throw_python_error() {
  python_error error;
  error.persist();
  throw error;
}

inline PyObject* wrapped(const Optional& t) {
  if (t.has_value() && t->defined()) return THPVariable_Wrap(*t);
  Py_RETURN_NONE;
}

inline Tensor unwrapped(PyObject* object) { return object == Py_None ? Tensor() : THPVariable_Unpack(object); }

// Raises what torch has for memory that is not there, if that is what the words say.
inline void raise_if_out_of_memory(const char* words) {
  const pybind11::gil_scoped_acquire locked;
  const THPObjectPtr error(PyObject_CallFunction(PyExc_RuntimeError, "s", words));
  if (!error || !THPObjectPtr(PyObject_CallFunctionObjArgs(raise_as_of_torch, error.get(), nullptr)))
    throw_python_error();
}

inline Gradients gradients_in_python(const BackwardArguments& a) {
  const pybind11::gil_scoped_acquire locked;
  const THPObjectPtr order(PyTuple_New(static_cast<Py_ssize_t>(a.order.size())));
  for (size_t i = 0; i < a.order.size(); ++i)
    PyTuple_SET_ITEM(order.get(), static_cast<Py_ssize_t>(i), PyLong_FromLongLong(a.order[i]));
  const THPObjectPtr balancer(a.balancer.has_value() ? PyFloat_FromDouble(*a.balancer) : Py_NewRef(Py_None));
  THPObjectPtr result(PyObject_CallFunction(
      backward_in_python, "NNNLOOOONNL", wrapped(a.grad), wrapped(a.saved), wrapped(a.cap),
      static_cast<long long>(a.dim), order.get(), a.need_x ? Py_True : Py_False, a.need_cap ? Py_True : Py_False,
      balancer.get(), wrapped(a.grad_penalty), wrapped(a.bias), static_cast<long long>(a.zeroed)));
  PyObject *dx = nullptr, *dcap = nullptr, *dbias = nullptr;
  if (!result || !PyArg_ParseTuple(result.get(), "OOO", &dx, &dcap, &dbias)) throw_python_error();
  return {unwrapped(dx), unwrapped(dcap), unwrapped(dbias)};
}

// Nothing where an operator refuses the call: then it does so again, and Python has the words.
inline std::optional<Results> forward_unless_refused(const Arguments& a) {
  try {
    return forward(a);
  } catch (const std::invalid_argument&) {
    return std::nullopt;
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const c10::Error&) {
    return std::nullopt;
  } catch (const pybind11::error_already_set& error) {
    const pybind11::gil_scoped_acquire locked;
    if (error.matches(PyExc_Exception)) return std::nullopt;
    throw;
  } catch (const python_error& error) {
    const pybind11::gil_scoped_acquire locked;
    if (PyErr_GivenExceptionMatches(error.type, PyExc_Exception)) return std::nullopt;
    throw;
  } catch (const std::runtime_error& error) {
    raise_if_out_of_memory(error.what());
    throw;
  }
}

}  // namespace dreluop::fast
