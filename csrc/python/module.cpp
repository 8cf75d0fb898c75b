// dreluop._C: what was built, and the plans, for people and tests. The operators are in _ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/capability.h"
#include "dreluop/layout.h"
#include "dreluop/plan.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = DRELUOP_VERSION;
  info["compiler"] = __VERSION__;
  info["torch_headers"] = DRELUOP_TORCH_HEADERS;
  info["torch_target"] = DRELUOP_TORCH_TARGET;
  return info;
}

py::dict layout_plan(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
                     const std::vector<int64_t>& cap_shape, int64_t dim) {
  if (shape.size() != strides.size()) throw std::invalid_argument("strides: expected one per dimension of shape");
  const dreluop::Traversal traversal = dreluop::traversal_of(shape, dreluop::memory_order(strides), cap_shape, dim);
  const dreluop::cpu::Plan plan = dreluop::cpu::plan_for(dreluop::product(shape), traversal.layout);
  py::dict result;
  result["order"] = std::vector<int64_t>(traversal.order.begin(), traversal.order.end());
  result["outer"] = traversal.layout.outer;
  result["caps"] = traversal.layout.caps;
  result["inner"] = traversal.layout.inner;
  result["variant"] = plan.variant == dreluop::cpu::Variant::kRuns ? "runs" : "columns";
  result["row"] = plan.row;
  result["rows"] = plan.rows;
  result["tile_rows"] = plan.tile_rows;
  result["tile_columns"] = plan.tile_columns;
  result["tiles"] = plan.tiles();
  result["partials"] = plan.partials();
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information and launch plans of the compiled part of dreluop.";
  m.def("build_info", &build_info, "What this was built with: version, compiler, torch headers and lowest torch.");
  m.def(
      "cpu_capability", [] { return dreluop::cpu::name_of(dreluop::cpu::capability()); },
      "Instruction set in use: \"default\", \"avx2\" or \"avx512\".");
  m.def("cpu_plan", &layout_plan, py::arg("shape"), py::arg("strides"), py::arg("cap_shape"), py::arg("dim") = 1,
        "How the CPU kernels traverse and tile an activation.");
}
