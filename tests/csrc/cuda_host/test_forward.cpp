// The forward kernels on the host, against the rule by the page.
#include "harness.h"

using namespace testing;

namespace {

struct Options {
  DType cap_dtype;
  bool bias, residual, mask, penalty, in_place;
  DType bias_dtype = DType::kFloat32;
  int64_t gap = 0, shift_x = 0, shift_y = 0, cap_gap = 0;
  bool transposed = false;
};

double activation(DType dtype, double x, double bias, double residual, const Options& options) {
  if (!options.bias && !options.residual) return x;
  if (dtype == DType::kFloat64) {
    double t = x;
    if (options.bias) t += bias;
    if (options.residual) t += residual;
    return t;
  }
  float t = static_cast<float>(x);
  if (options.bias) t += static_cast<float>(bias);
  if (options.residual) t += static_cast<float>(residual);
  return rounded(dtype, t);
}

void check_forward(DType dtype, const Shape& shape, const Options& options) {
  const std::string which = shape.text() + " dtype " + std::to_string(static_cast<int>(dtype)) + " cap " +
                            std::to_string(static_cast<int>(options.cap_dtype)) + " gap " +
                            std::to_string(options.gap) + " shifts " + std::to_string(options.shift_x) + " " +
                            std::to_string(options.shift_y);
  Described described(dtype, shape);
  const std::vector<int> order = options.transposed ? std::vector<int>{2, 1, 0} : std::vector<int>{0, 1, 2};
  Array x = Array(dtype, shape.sizes(), order, options.gap, options.shift_x).fill();
  Array y = options.in_place ? x : Array(dtype, shape.sizes(), {0, 1, 2}, 0, options.shift_y);
  Array residual, bias;
  if (options.residual) residual = Array(dtype, shape.sizes(), {0, 1, 2}, 0, options.shift_x).fill();
  if (options.bias) bias = Array(options.bias_dtype, shape.cap_sizes(), shape.cap_order(), options.cap_gap).fill();
  Array cap = cap_array(options.cap_dtype, shape, options.cap_gap).fill();
  const int64_t numel = shape.numel();
  std::vector<double> expected(numel);
  std::vector<int> regions(numel);
  for (int64_t i = 0; i < numel; ++i) {
    const int64_t c = shape.cap_of(i);
    const double m = rounded(dtype, cap.get(c));
    const double t =
        activation(dtype, x.get(i), options.bias ? bias.get(c) : 0, options.residual ? residual.get(i) : 0, options);
    expected[i] = value(t, m);
    regions[i] = region(t, m);
  }
  std::vector<uint8_t> mask((numel + 3) / 4, 0xff);
  mask.shrink_to_fit();
  Forward pass;
  pass.x = x.operand();
  pass.y = y.operand();
  pass.residual = residual.operand();
  pass.cap = cap.per_cap();
  pass.bias = bias.per_cap();
  if (options.mask) pass.mask = mask.data();
  double penalty = 0;
  float penalty32 = 0;
  const bool wide = options.cap_dtype == DType::kFloat64;
  if (options.penalty) {
    pass.penalty = {wide ? static_cast<void*>(&penalty) : &penalty32, wide ? DType::kFloat64 : DType::kFloat32};
    pass.balancer = 0.5;
  }
  Space space(forward_workspace(described.problem, pass));
  const int before = host_cuda::launches;
  const Status status = forward(described.problem, pass, space.memory.get());
  CHECK(status.ok(), which);
  CHECK(host_cuda::launches - before == (numel > 0 || options.penalty ? 1 : 0), which);
  for (int64_t i = 0; i < numel; ++i) {
    CHECK(same(y.get(i), expected[i]), which + " at " + std::to_string(i) + ": got " + std::to_string(y.get(i)) +
                                           ", expected " + std::to_string(expected[i]));
    if (options.mask) CHECK(mask_at(mask, i) == regions[i], which + " mask at " + std::to_string(i));
  }
  if (options.mask)
    for (int64_t i = numel; i < static_cast<int64_t>(mask.size()) * 4; ++i) CHECK(mask_at(mask, i) == 0, which);
  if (!options.penalty) return;
  long double sum = 0;
  for (int64_t c = 0; c < (shape.shared_cap ? 1 : shape.layout.caps); ++c) sum += 0.5L * cap.get(c) * cap.get(c);
  const double got = wide ? penalty : penalty32;
  const long double bound = 8 * (wide ? 2.3e-16L : 1.2e-7L) * sum;
  CHECK(std::isnan(static_cast<double>(sum))   ? std::isnan(got)
        : std::isinf(static_cast<double>(sum)) ? got == static_cast<double>(sum)
                                               : std::abs(got - sum) <= bound,
        which);
}

void refusals() {
  const Shape shape{{2, 3, 4}};
  Described described(DType::kFloat32, shape);
  Array x(DType::kFloat32, shape.sizes(), {0, 1, 2}), cap(DType::kFloat32, {3}, {0});
  x.fill();
  cap.fill();
  Forward pass;
  pass.x = pass.y = x.operand();
  CHECK_THROWS(forward(described.problem, pass, nullptr), "cap: missing");
  pass.cap = cap.per_cap();
  described.problem.layout.inner = 5;
  CHECK_THROWS(forward(described.problem, pass, nullptr), "layout");
  described.problem.layout.inner = 4;

  host_cuda::error_of_launch = 98;
  const Status failed = forward(described.problem, pass, nullptr);
  CHECK(failed.error == 98 && std::string(failed.kernel) == "dreluop forward");
  CHECK(forward(described.problem, pass, nullptr).ok());
}

}  // namespace

int main() {
  const Shape shapes[] = {{{1, 1, 1}},
                          {{1, 1, 7}},
                          {{1, 1, 4099}},
                          {{3, 1, 40}},
                          {{2, 3, 0}},
                          {{0, 3, 2}},
                          {{2, 0, 3}},
                          {{3, 16, 1}},
                          {{5, 8, 1}},
                          {{70, 24, 1}},
                          {{9, 5, 1}},
                          {{4, 3, 7}},
                          {{3, 7, 8}},
                          {{2, 5, 49}},
                          {{1, 3, 1031}},
                          {{300, 5, 3}},
                          {{1, 4099, 1}},
                          {{2, 12288, 1}},
                          {{2, 3, 5000}},
                          {{7, 13, 1}},
                          {{5, 24, 1}, false, true},
                          {{3, 8, 6}, false, true},
                          {{4, 6, 9}, true},
                          {{1, 3, 17}, true},
                          {{130, 8, 1}, true}};
  int runs = 0;
  for (const Shape& shape : shapes)
    for (const DType dtype : kDTypes)
      for (int variant = 0; variant < 16; ++variant) {
        host_cuda::backwards = variant % 2 == 1;
        Options options{};
        // What differs from the plain call, one or several at a time.
        options.cap_dtype = variant < 4 ? dtype : kDTypes[variant % 4];
        options.bias = variant == 2 || variant == 6 || variant >= 12;
        options.bias_dtype = kDTypes[(variant / 2) % 4];
        options.residual = variant == 3 || variant == 7 || variant == 13;
        options.mask = variant % 3 == 1;
        options.penalty = variant % 5 == 4;
        options.in_place = variant == 5 || variant == 8 || variant == 12;
        options.gap = variant == 8 || variant == 9 ? 2 : 0;
        options.shift_x = variant == 10 || variant == 11 || variant == 13 ? 1 : 0;
        options.shift_y = variant == 10 || variant == 14 ? 1 : 0;
        options.cap_gap = variant == 11 || variant == 15 ? 3 : 0;
        options.transposed = variant == 14;
        if (variant == 13) options.shift_y = 1, options.mask = false;
        check_forward(dtype, shape, options);
        ++runs;
      }
  refusals();
  std::printf("cuda_host forward: ok, %d runs\n", runs);
}
