// Tangent, surrogate, saturation and the penalty over lists, on the host.
#include "../smoothed_slope.h"
#include "harness.h"

using namespace testing;

namespace {

const Shape kShapes[] = {{{1, 1, 1}},
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

void check_tangent(DType dtype, const Shape& shape, bool with_v, bool with_mask, int64_t shift, DType cap_dtype) {
  const std::string which = "tangent " + shape.text() + " dtype " + std::to_string(static_cast<int>(dtype));
  Described described(dtype, shape);
  const int64_t numel = shape.numel();
  Array x = Array(dtype, shape.sizes(), {0, 1, 2}).fill();
  Array u = Array(dtype, shape.sizes(), {0, 1, 2}, shift, shift).fill(), y(dtype, shape.sizes(), {0, 1, 2}, 0, shift);
  Array cap = cap_array(cap_dtype, shape).fill(), v = cap_array(cap_dtype, shape).fill();
  Array out(dtype, shape.sizes(), {2, 1, 0}, 0, shift);
  std::vector<uint8_t> mask((numel + 3) / 4, 0);
  for (int64_t i = 0; i < numel; ++i) {
    const double m = rounded(dtype, cap.get(shape.cap_of(i)));
    y.set(i, value(x.get(i), m));
    mask[i / 4] = static_cast<uint8_t>(mask[i / 4] | region(x.get(i), m) << (2 * (i % 4)));
  }
  Tangent pass;
  pass.u = u.operand();
  pass.out = out.operand();
  if (with_mask)
    pass.mask = mask.data();
  else
    pass.y = y.operand(), pass.cap = cap.per_cap();
  if (with_v) pass.v = v.per_cap();
  CHECK(tangent(described.problem, pass).ok(), which);
  for (int64_t i = 0; i < numel; ++i) {
    const int where = mask_at(mask, i);
    const double at_cap = with_v && where == kCappedRegion ? rounded(dtype, v.get(shape.cap_of(i))) : 0.0;
    CHECK(same(out.get(i), where == kInsideRegion ? u.get(i) : at_cap), which + " at " + std::to_string(i));
  }
}

void check_straight_through(DType dtype, const Shape& shape, bool with_mask, int64_t shift, DType cap_dtype) {
  const std::string which = "straight through " + shape.text() + " dtype " + std::to_string(static_cast<int>(dtype));
  Described described(dtype, shape);
  const int64_t numel = shape.numel();
  Array x = Array(dtype, shape.sizes(), {0, 1, 2}).fill(), cap = cap_array(cap_dtype, shape).fill();
  Array g = Array(dtype, shape.sizes(), {0, 1, 2}, shift, shift).fill(), y(dtype, shape.sizes(), {0, 1, 2}, 0, shift);
  Array dx(dtype, shape.sizes(), {2, 1, 0}, 0, shift);
  std::vector<uint8_t> mask((numel + 3) / 4, 0);
  for (int64_t i = 0; i < numel; ++i) {
    const double m = rounded(dtype, cap.get(shape.cap_of(i)));
    y.set(i, value(x.get(i), m));
    mask[i / 4] = static_cast<uint8_t>(mask[i / 4] | region(x.get(i), m) << (2 * (i % 4)));
  }
  Surrogate pass;
  pass.grad = g.operand();
  pass.dx = dx.operand();
  if (with_mask)
    pass.mask = mask.data();
  else
    pass.saved = y.operand();
  CHECK(surrogate(described.problem, pass).ok(), which);
  for (int64_t i = 0; i < numel; ++i)
    CHECK(same(dx.get(i), mask_at(mask, i) != kOffRegion ? g.get(i) : 0.0), which + " at " + std::to_string(i));
}

void check_soft(DType dtype, const Shape& shape, int64_t shift, DType cap_dtype, DType width_dtype) {
  const std::string which = "soft " + shape.text() + " dtype " + std::to_string(static_cast<int>(dtype));
  Described described(dtype, shape);
  Array x = Array(dtype, shape.sizes(), {0, 1, 2}, shift, shift).fill(), cap = cap_array(cap_dtype, shape).fill();
  Array g = Array(dtype, shape.sizes(), {0, 1, 2}, 0, shift).fill(0), width = cap_array(width_dtype, shape);
  Array dx(dtype, shape.sizes(), {2, 1, 0}, 0, shift);
  for (int64_t c = 0; c < width.count; ++c) width.set(c, 0.3 + 0.1 * static_cast<double>(generator() % 10));
  Surrogate pass;
  pass.grad = g.operand();
  pass.saved = x.operand();
  pass.dx = dx.operand();
  pass.cap = cap.per_cap();
  pass.width = width.per_cap();
  CHECK(surrogate(described.problem, pass).ok(), which);
  const DType wide = dtype == DType::kFloat64 ? dtype : DType::kFloat32;
  const double eps = wide == DType::kFloat64 ? 2.3e-16 : 1.2e-7, tiny = wide == DType::kFloat64 ? 2.3e-308 : 1.2e-38;
  for (int64_t i = 0; i < shape.numel(); ++i) {
    const double m = rounded(dtype, cap.get(shape.cap_of(i)));
    const SmoothedSlope slope(x.get(i), m, rounded(wide, width.get(shape.cap_of(i))));
    const double want = m <= 0 ? 0 : static_cast<double>(g.get(i) * slope.value), found = dx.get(i);
    const std::string where = which + " at " + std::to_string(i);
    if (std::isnan(want)) {
      CHECK(std::isnan(found), where);
      continue;
    }
    const double slack =
        (want == 0 ? 0 : slope.relative_error() * eps * std::abs(want)) + 2 * tiny * std::abs(g.get(i));
    CHECK(rounded(dtype, want - slack) <= found && found <= rounded(dtype, want + slack), where);
  }
}

void check_saturation(DType dtype, const Shape& shape, int64_t shift, DType cap_dtype) {
  const std::string which = "saturation " + shape.text() + " dtype " + std::to_string(static_cast<int>(dtype));
  Described described(dtype, shape);
  const int64_t numel = shape.numel(), caps = shape.layout.caps;
  Array x = Array(dtype, shape.sizes(), {0, 1, 2}, shift, shift).fill(), cap = cap_array(cap_dtype, shape).fill();
  std::vector<int64_t> counts(3 * caps, -1), expected(3 * caps, 0);
  const Array one(DType::kFloat64, shape.cap_sizes(), shape.cap_order());
  const int64_t samples = shape.layout.outer, sample_inner = caps * shape.layout.inner;
  std::vector<uint8_t> has_gradient(samples, 7), expected_has_gradient(samples, 0);
  for (int64_t i = 0; i < numel; ++i) {
    const int where = region(x.get(i), rounded(dtype, cap.get(shape.cap_of(i))));
    ++expected[where * caps + one.at(shape.cap_of(i))];
    if (where == kInsideRegion) expected_has_gradient[i / sample_inner] = 1;
  }
  Saturation pass;
  pass.x = x.operand();
  pass.cap = cap.per_cap();
  pass.counts = counts.data();
  pass.counts_strides = one.strides.data();
  pass.has_gradient = has_gradient.data();
  pass.samples = samples;
  pass.sample_inner = sample_inner;
  CHECK(saturation(described.problem, pass).ok(), which);
  CHECK(counts == expected && has_gradient == expected_has_gradient, which);
}

void check_penalty(const std::vector<int64_t>& sizes, DType result_dtype, bool strided) {
  std::vector<Array> arrays, gradients;
  std::vector<CapTensor> caps, outs;
  long double sum = 0;
  for (size_t k = 0; k < sizes.size(); ++k) {
    const DType dtype = kDTypes[k % 4];
    const std::vector<int64_t> dims = strided ? std::vector<int64_t>{3, sizes[k], 2} : std::vector<int64_t>{sizes[k]};
    const std::vector<int> order = strided ? std::vector<int>{1, 2, 0} : std::vector<int>{0};
    arrays.push_back(Array(dtype, dims, order, strided ? 1 : 0).fill(0));
    gradients.emplace_back(dtype, dims, strided ? std::vector<int>{2, 0, 1} : order);
    for (int64_t i = 0; i < arrays[k].count; ++i) sum += static_cast<long double>(arrays[k].get(i)) * arrays[k].get(i);
  }
  for (size_t k = 0; k < sizes.size(); ++k) {
    const auto describe = [](Array& a) {
      return CapTensor{a.data, a.dtype, static_cast<int>(a.sizes.size()), a.sizes.data(), a.strides.data()};
    };
    caps.push_back(describe(arrays[k]));
    outs.push_back(describe(gradients[k]));
  }
  double result = -1;
  float result32 = -1;
  const bool wide = result_dtype == DType::kFloat64;
  const Scalar scalar{wide ? static_cast<void*>(&result) : &result32, result_dtype};
  Space space(penalty_workspace(caps));
  const int before = host_cuda::launches;
  CHECK(penalty(caps, 0.5, scalar, space.memory.get(), nullptr).ok());
  CHECK(host_cuda::launches - before == static_cast<int>((caps.size() + kCapsPerLaunch - 1) / kCapsPerLaunch));
  const long double bound = 8 * (wide ? 2.3e-16L : 1.2e-7L) * 0.5L * sum;
  CHECK(std::abs((wide ? result : result32) - 0.5L * sum) <= bound, std::to_string(sizes.size()) + " tensors");

  const float grad = 3;
  CHECK(penalty_backward(caps, outs, 0.5, {const_cast<float*>(&grad), DType::kFloat32}, nullptr).ok());
  for (size_t k = 0; k < sizes.size(); ++k)
    for (int64_t i = 0; i < arrays[k].count; ++i)
      CHECK(same(gradients[k].get(i), rounded(gradients[k].dtype, 3 * arrays[k].get(i))), "penalty's gradient");
}

}  // namespace

int main() {
  int runs = 0;
  for (const Shape& shape : kShapes)
    for (const DType dtype : kDTypes)
      for (int variant = 0; variant < 6; ++variant, ++runs) {
        host_cuda::backwards = variant % 2 == 1;
        const DType cap_dtype = variant < 3 ? dtype : kDTypes[variant - 2];
        check_tangent(dtype, shape, variant != 1, variant % 3 == 2, variant % 4 == 3, cap_dtype);
        check_straight_through(dtype, shape, variant % 2 == 1, variant % 4 == 3, cap_dtype);
        check_soft(dtype, shape, variant % 4 == 3, cap_dtype, kDTypes[variant % 4]);
        check_saturation(dtype, shape, variant % 4 == 3, cap_dtype);
      }
  check_penalty({1}, DType::kFloat32, false);
  check_penalty({0, 0}, DType::kFloat64, false);
  check_penalty({1, 4096, 4097, 0, 17, 9000, 3, 5}, DType::kFloat64, false);
  check_penalty({5, 100, 3}, DType::kFloat32, true);
  check_penalty(std::vector<int64_t>(17, 6), DType::kFloat32, false);
  check_penalty(std::vector<int64_t>(2 * kCapsPerLaunch + 20, 9), DType::kFloat64, false);
  CHECK_THROWS(penalty_workspace({}), "caps: got no tensor");
  std::printf("cuda_host small: ok, %d runs\n", runs);
}
