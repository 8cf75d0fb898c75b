// The gradients of attacks, on the host.
#include "../smoothed_slope.h"
#include "harness.h"

using namespace testing;

namespace {

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
    pass.y = y.operand();
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
  pass.y = x.operand();
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

}  // namespace

int main() {
  for_each_variant("surrogate", [](DType dtype, const Shape& shape, int variant, DType cap_dtype) {
    check_straight_through(dtype, shape, variant % 2 == 1, variant % 4 == 3, cap_dtype);
    check_soft(dtype, shape, variant % 4 == 3, cap_dtype, kDTypes[variant % 4]);
  });
}
