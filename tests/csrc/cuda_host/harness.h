// Inputs, buffers and the plain reference for the tests of the CUDA kernels on the host.
#pragma once

#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../check.h"
#include "cuda/kernels.h"
#include "dreluop/cuda_backward_plan.h"
#include "host_cuda.h"

namespace testing {

using namespace dreluop;
using namespace dreluop::cuda;

inline std::mt19937 generator(7);

inline size_t bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }
constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16};

inline double load(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<const float*>(data)[i];
    case DType::kFloat64:
      return static_cast<const double*>(data)[i];
    case DType::kFloat16:
      return Float16::to_float(static_cast<const uint16_t*>(data)[i]);
    default:
      return BFloat16::to_float(static_cast<const uint16_t*>(data)[i]);
  }
}

inline void save(void* data, DType dtype, int64_t i, double value) {
  switch (dtype) {
    case DType::kFloat32:
      static_cast<float*>(data)[i] = static_cast<float>(value);
      break;
    case DType::kFloat64:
      static_cast<double*>(data)[i] = value;
      break;
    case DType::kFloat16:
      static_cast<uint16_t*>(data)[i] = Float16::round(value);
      break;
    default:
      static_cast<uint16_t*>(data)[i] = BFloat16::round(value);
  }
}

inline double rounded(DType dtype, double value) {
  uint64_t scratch = 0;
  save(&scratch, dtype, 0, value);
  return load(&scratch, dtype, 0);
}

// Equal as numbers and in sign of zero, or both NaN.
inline bool same(double a, double b) {
  return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

// A strided array over the dimensions (outer, caps, inner), or over the caps alone, that ends where its last element
// ends: with AddressSanitizer a read or write past it is an error.
struct Array {
  Array() = default;
  // `order`: dimensions from the outermost in memory; `gap` unused elements between neighbors; `shift` elements before
  // the first, against alignment.
  Array(DType dtype, std::vector<int64_t> sizes, std::vector<int> order, int64_t gap = 0, int64_t shift = 0)
      : dtype(dtype), sizes(std::move(sizes)), strides(this->sizes.size(), 0) {
    int64_t step = 1 + gap, numel = 1, reach = 1;
    for (size_t k = order.size(); k-- > 0;) {
      strides[order[k]] = step;
      step *= std::max<int64_t>(1, this->sizes[order[k]]);
    }
    for (size_t d = 0; d < this->sizes.size(); ++d) {
      numel *= this->sizes[d];
      reach += (this->sizes[d] - 1) * strides[d];
    }
    count = numel;
    const size_t size = numel == 0 ? 0 : static_cast<size_t>(reach + shift) * bytes_of(dtype);
    memory.reset(new unsigned char[size]);
    memset(memory.get(), 0xa5, size);
    data = memory.get() + (numel == 0 ? 0 : static_cast<size_t>(shift) * bytes_of(dtype));
  }

  bool present() const { return memory != nullptr; }
  int64_t at(int64_t i) const {
    int64_t offset = 0;
    for (size_t d = sizes.size(); d-- > 0; i /= sizes[d]) offset += i % sizes[d] * strides[d];
    return offset;
  }
  double get(int64_t i) const { return load(data, dtype, at(i)); }
  void set(int64_t i, double value) { save(data, dtype, at(i), value); }
  Operand operand() const { return present() ? Operand{data, strides.data()} : Operand{}; }
  PerCap per_cap() const { return present() ? PerCap{data, dtype, strides.data()} : PerCap{}; }

  // Numbers around the caps, with special values among them.
  Array& fill(double share_of_specials = 0.1) {
    static const double special[] = {std::nan(""), INFINITY, -INFINITY, 0.0, -0.0, 1.0, 1e-40, 0.5, -1.0, 6e4};
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    for (int64_t i = 0; i < count; ++i)
      set(i, uniform(generator) < share_of_specials ? special[generator() % 10] : normal(generator));
    return *this;
  }
  Array& fill_with(double value) {
    for (int64_t i = 0; i < count; ++i) set(i, value);
    return *this;
  }

  DType dtype = DType::kFloat32;
  std::vector<int64_t> sizes, strides;
  int64_t count = 0;
  std::shared_ptr<unsigned char[]> memory;
  unsigned char* data = nullptr;
};

struct Shape {
  CapLayout layout;
  bool shared_cap = false;
  bool folded = false;  // caps of two dimensions, (4, caps / 4), that lie the other way round in memory

  int64_t numel() const { return layout.outer * layout.caps * layout.inner; }
  int64_t cap_of(int64_t i) const { return i / layout.inner % layout.caps; }
  std::vector<int64_t> sizes() const { return {layout.outer, layout.caps, layout.inner}; }
  std::vector<int64_t> cap_sizes() const {
    return folded ? std::vector<int64_t>{4, layout.caps / 4} : std::vector<int64_t>{layout.caps};
  }
  std::vector<int> cap_order() const { return folded ? std::vector<int>{1, 0} : std::vector<int>{0}; }
  std::string text() const {
    return std::to_string(layout.outer) + "x" + std::to_string(layout.caps) + "x" + std::to_string(layout.inner);
  }
};

// The problem that describes a shape; keeps the sizes it points to.
struct Described {
  Described(DType dtype, const Shape& shape, int multiprocessors = 2)
      : sizes(shape.sizes()), cap_sizes(shape.cap_sizes()) {
    problem.dtype = dtype;
    problem.rank = 3;
    problem.sizes = sizes.data();
    problem.layout = shape.layout;
    problem.cap_rank = static_cast<int>(cap_sizes.size());
    problem.cap_sizes = cap_sizes.data();
    problem.shared_cap = shape.shared_cap;
    problem.multiprocessors = multiprocessors;
  }
  std::vector<int64_t> sizes, cap_sizes;
  Problem problem;
};

// A cap of the shape: one value at stride 0 where it is shared.
inline Array cap_array(DType dtype, const Shape& shape, int64_t gap = 0) {
  if (!shape.shared_cap) return Array(dtype, shape.cap_sizes(), shape.cap_order(), gap);
  Array one(dtype, {1}, {0});
  one.strides = {0};
  one.sizes = {shape.layout.caps};
  return one;
}

// Memory for a workspace, full of what must not be relied on.
struct Space {
  explicit Space(const Workspace& workspace) : memory(new unsigned char[workspace.bytes]) {
    CHECK(workspace.zeroed <= workspace.bytes);
    memset(memory.get(), 0xff, workspace.bytes);
  }
  std::unique_ptr<unsigned char[]> memory;
};

enum { kOffRegion, kInsideRegion, kCappedRegion };

// The rule by the page: from the activation, not from the output.
inline int region(double x, double m) {
  if (std::isnan(x) || std::isnan(m)) return kInsideRegion;
  if (m > 0 && x >= m) return kCappedRegion;
  return x > 0 && x < m ? kInsideRegion : kOffRegion;
}

inline double value(double x, double m) {
  if (std::isnan(x) || std::isnan(m)) return std::nan("");
  const int where = region(x, m);
  return where == kInsideRegion ? x : where == kCappedRegion ? m : 0.0;
}

inline int mask_at(const std::vector<uint8_t>& mask, int64_t i) { return (mask[i / 4] >> (2 * (i % 4))) & 3; }

// |got - sum| <= 8 eps * magnitude, then one rounding; not finite as the sum is not.
inline void check_sum(const Array& got, int64_t i, long double sum, long double magnitude, double eps,
                      const std::string& which) {
  const double found = got.get(i);
  if (std::isnan(static_cast<double>(sum)) || std::isinf(static_cast<double>(magnitude))) {
    CHECK(std::isnan(static_cast<double>(sum)) ? std::isnan(found) : found == static_cast<double>(sum), which);
    return;
  }
  const long double slack = 8 * eps * magnitude;
  const double low = rounded(got.dtype, static_cast<double>(sum - slack)),
               high = rounded(got.dtype, static_cast<double>(sum + slack));
  CHECK(low <= found && found <= high,
        which + ": got " + std::to_string(found) + ", expected " + std::to_string(static_cast<double>(sum)));
}

inline const Shape kShapes[] = {{{1, 1, 1}},
                                {{1, 1, 4099}},
                                {{2, 3, 0}},
                                {{3, 16, 1}},
                                {{70, 24, 1}},
                                {{9, 5, 1}},
                                {{4, 3, 7}},
                                {{2, 5, 49}},
                                {{3, 2, 1031}},
                                {{2, 4099, 1}},
                                {{50, 24, 1}, false, true},
                                {{4, 6, 9}, true},
                                {{300, 5, 3}}};

// Calls f(dtype, shape, variant, dtype of the cap); blocks and threads run forwards and backwards.
template <class F>
void for_each_variant(const char* name, const F& f) {
  int runs = 0;
  for (const Shape& shape : kShapes)
    for (const DType dtype : kDTypes)
      for (int variant = 0; variant < 6; ++variant, ++runs) {
        host_cuda::backwards = variant % 2 == 1;
        f(dtype, shape, variant, variant < 3 ? dtype : kDTypes[variant - 2]);
      }
  std::printf("cuda_host %s: ok, %d runs\n", name, runs);
}

}  // namespace testing
