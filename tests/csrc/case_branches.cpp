// Says which branches of the plans a tensor reaches: tests/build/test_case_branches.py holds the cases of the Python
// tests to it. Reads "offset dim; sizes; strides; cap sizes" from lines of standard input, and answers each line with
// "dtype: branch, branch, ..." per dtype, the dtypes separated by ";".
#include <iostream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "dreluop/cuda_backward_plan.h"
#include "dreluop/cuda_plan.h"
#include "dreluop/plan.h"

using namespace dreluop;
using Branches = std::set<std::string>;

namespace {

// What the host shim of the CUDA operators has.
constexpr int64_t kMultiprocessors = 4;

struct Case {
  int64_t offset = 0, dim = 0;
  DimVector sizes, strides, cap;
};

DimVector numbers(std::istringstream* line) {
  DimVector values;
  std::string text;
  std::getline(*line, text, ';');
  std::istringstream words(text);
  for (int64_t value; words >> value;) values.push_back(value);
  return values;
}

Case parsed(const std::string& text) {
  std::istringstream line(text);
  const DimVector head = numbers(&line);
  Case result{head[0], head[1], {}, {}, {}};
  result.sizes = numbers(&line);
  result.strides = numbers(&line);
  result.cap = numbers(&line);
  return result;
}

bool is_dense(const DimVector& sizes, const DimVector& strides) {
  int64_t expected = 1;
  for (size_t d = sizes.size(); d-- > 0; expected *= sizes[d])
    if (sizes[d] != 1 && strides[d] != expected) return false;
  return true;
}

std::string channels(const CapLayout& layout) {
  if (layout.inner == 1) return "channels innermost";
  return layout.outer == 1 ? "channels outermost" : "channels between";
}

void add_traversal(const Traversal& traversal, const DimVector& memory, Branches* found) {
  switch (traversal.granularity) {
    case Granularity::kLayer:
      found->insert("one cap");
      break;
    case Granularity::kChannel:
      found->insert(channels(traversal.layout));
      break;
    case Granularity::kNeuron:
      if (traversal.layout.outer == 1 && traversal.layout.inner > 1)
        found->insert("neurons, batch innermost");
      else
        found->insert(traversal.order == memory ? "neurons, in memory order" : "neurons, batch moved to the front");
  }
}

void add_cpu(int64_t numel, const CapLayout& layout, Branches* found) {
  const cpu::Plan plan = cpu::plan_for(numel, layout);
  if (plan.variant == cpu::Variant::kRuns) {
    found->insert(layout.caps == 1 ? "cpu: one run" : "cpu: runs");
    if (plan.tiles_across > 1) found->insert("cpu: runs of several tiles");
    return;
  }
  found->insert("cpu: columns");
  if (layout.inner >= cpu::kShortestRun) found->insert("cpu: columns, as there are many rows");
  if (plan.row > layout.caps * layout.inner) found->insert("cpu: repeated columns");
  if (plan.tiles_across > 1) found->insert("cpu: columns of several tiles");
  if (plan.tiles_down > 1) found->insert("cpu: tiles below each other");
  if (numel % plan.row > 0) found->insert("cpu: last row cut off");
}

void add_cuda_forward(DType dtype, int64_t numel, int64_t head, const CapLayout& merged, Branches* found) {
  const int vec = cuda::vec_of(dtype);
  const char* modes[] = {"spans", "aligned caps", "a cap each"};
  found->insert(std::string("cuda forward: ") + modes[static_cast<int>(cuda::cap_mode(dtype, merged, head))]);
  if (head > 0) found->insert("cuda forward: head");
  if ((numel - std::min(head, numel)) % vec > 0) found->insert("cuda forward: rest");
}

void add_cuda_backward(DType dtype, const CapLayout& layout, bool dense, int64_t head, Branches* found) {
  // As in csrc/cuda/backward.cu.
  const bool by_rows = cuda::goes_by_rows(dtype, layout);
  const bool vector = dense && dtype != DType::kFloat64 && (head == 0 || by_rows);
  const bool packed = vector && by_rows && (layout.caps == 1 || (head == 0 && layout.inner % cuda::vec_of(dtype) == 0));
  const cuda::BackwardPlan plan = cuda::backward_plan(dtype, layout, kMultiprocessors, packed, head);
  if (plan.by_rows) {
    const std::string packed_rows = layout.caps == 1 ? "packed rows of one cap" : "packed rows of several caps";
    found->insert("cuda backward: " + (packed ? packed_rows : "segments of rows"));
    if (!packed && plan.rows.segments_per_run > 1) found->insert("cuda backward: several segments of a run");
  } else {
    const bool straight = vector && plan.columns.aligned;
    found->insert(straight ? "cuda backward: columns of vectors" : "cuda backward: columns, general");
    if (!plan.columns.aligned) found->insert("cuda backward: last vector of a row cut off");
    if (plan.columns.repeat > 1) found->insert("cuda backward: repeated columns");
    if (plan.columns.tiles > 1) found->insert("cuda backward: tiles of columns");
    if (plan.columns.rows * plan.columns.row < layout.outer * layout.caps * layout.inner)
      found->insert("cuda backward: last row cut off");
  }
  if (plan.cap_blocks > 1) found->insert("cuda backward: blocks that share caps");
}

Branches branches_of(const Case& c, DType dtype) {
  Branches found;
  const int64_t numel = product(c.sizes);
  const DimVector memory = memory_order(c.strides);
  const Traversal traversal = traversal_of(c.sizes, memory, c.cap, c.dim);
  if (numel == 0) return {"empty"};
  add_traversal(traversal, memory, &found);
  add_cpu(numel, traversal.layout, &found);
  DimVector sizes, strides;
  for (const int64_t d : traversal.order) {
    sizes.push_back(c.sizes[d]);
    strides.push_back(c.strides[d]);
  }
  const bool dense = is_dense(sizes, strides);
  found.insert(overlaps_itself(c.sizes, c.strides) ? "overlapping" : dense ? "dense" : "strided");
  const int64_t size = size_of(dtype), head = dense ? (16 - c.offset * size % 16) % 16 / size : 0;
  add_cuda_forward(dtype, numel, head, cuda::merged(traversal.layout), &found);
  add_cuda_backward(dtype, cuda::merged(traversal.layout), dense, head, &found);
  return found;
}

}  // namespace

int main() {
  const std::pair<const char*, DType> dtypes[] = {{"float32", DType::kFloat32},
                                                  {"float64", DType::kFloat64},
                                                  {"float16", DType::kFloat16},
                                                  {"bfloat16", DType::kBFloat16}};
  for (std::string line; std::getline(std::cin, line);) {
    const Case c = parsed(line);
    for (const auto& [name, dtype] : dtypes) {
      std::cout << name << ":";
      const char* separator = " ";
      for (const std::string& branch : branches_of(c, dtype)) {
        std::cout << separator << branch;
        separator = " + ";
      }
      std::cout << ";";
    }
    std::cout << "\n";
  }
}
