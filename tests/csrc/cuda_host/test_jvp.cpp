// Forward-mode derivatives, on the host.
#include "harness.h"

using namespace testing;

namespace {

void check_jvp(DType dtype, const Shape& shape, bool with_v, bool with_mask, int64_t shift, DType cap_dtype) {
  const std::string which = "jvp " + shape.text() + " dtype " + std::to_string(static_cast<int>(dtype));
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
  Jvp pass;
  pass.u = u.operand();
  pass.out = out.operand();
  if (with_mask)
    pass.mask = mask.data();
  else
    pass.y = y.operand(), pass.cap = cap.per_cap();
  if (with_v) pass.v = v.per_cap();
  CHECK(jvp(described.problem, pass).ok(), which);
  for (int64_t i = 0; i < numel; ++i) {
    const int where = mask_at(mask, i);
    const double at_cap = with_v && where == kCappedRegion ? rounded(dtype, v.get(shape.cap_of(i))) : 0.0;
    CHECK(same(out.get(i), where == kInsideRegion ? u.get(i) : at_cap), which + " at " + std::to_string(i));
  }
}

}  // namespace

int main() {
  for_each_variant("jvp", [](DType dtype, const Shape& shape, int variant, DType cap_dtype) {
    check_jvp(dtype, shape, variant != 1, variant % 3 == 2, variant % 4 == 3, cap_dtype);
  });
}
