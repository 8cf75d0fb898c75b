// Counts of regions, on the host.
#include "harness.h"

using namespace testing;

namespace {

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

}  // namespace

int main() {
  for_each_variant("saturation", [](DType dtype, const Shape& shape, int variant, DType cap_dtype) {
    check_saturation(dtype, shape, variant % 4 == 3, cap_dtype);
  });
}
