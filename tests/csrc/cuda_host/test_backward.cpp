// The backward kernels on the host, against sums in long double and the rule by the page.
#include "harness.h"

using namespace testing;

namespace {

struct Options {
  DType cap_dtype, bias_dtype;
  bool dx = true, dcap = true, dbias = false, mask = false, penalty = false, in_place = false;
  int64_t gap = 0, shift = 0, cap_gap = 0, mask_shift = 0;
  bool expanded_grad = false, transposed_y = false;
  bool constant = false;
  int multiprocessors = 2;
};

std::string describe(DType dtype, const Shape& shape, const Options& o) {
  return shape.text() + (o.mask ? " mask" : " y") + " dtype " + std::to_string(static_cast<int>(dtype)) + " cap " +
         std::to_string(static_cast<int>(o.cap_dtype)) + " gap " + std::to_string(o.gap) + " shift " +
         std::to_string(o.shift);
}

double eps_of(DType dtype, DType gradient) {
  return dtype == DType::kFloat64 || gradient == DType::kFloat64 ? std::numeric_limits<double>::epsilon()
                                                                 : std::numeric_limits<float>::epsilon();
}

struct Expected {
  explicit Expected(int64_t n) : sum(n, 0), magnitude(n, 0) {}
  void add(int64_t c, long double term) {
    sum[c] += term;
    magnitude[c] += std::abs(term);
  }
  std::vector<long double> sum, magnitude;
};

void check_backward(DType dtype, const Shape& shape, const Options& o) {
  const std::string which = describe(dtype, shape, o);
  Described described(dtype, shape, o.multiprocessors);
  const int64_t numel = shape.numel(), caps = shape.layout.caps;
  Array x(dtype, shape.sizes(), {0, 1, 2}), grad(dtype, shape.sizes(), {0, 1, 2}, o.gap, o.shift);
  Array cap = cap_array(o.cap_dtype, shape, o.cap_gap);
  if (o.constant) {
    x.fill_with(1);
    grad.fill_with(0.1);
    cap.fill_with(1);
  } else {
    x.fill(0.05);
    grad.fill(0.01);
    cap.fill(0.05);
  }
  if (o.expanded_grad) grad.strides = {0, 0, 0};
  const std::vector<int> y_order = o.transposed_y ? std::vector<int>{2, 1, 0} : std::vector<int>{0, 1, 2};
  Array y(dtype, shape.sizes(), y_order, 0, o.shift);
  std::vector<uint8_t> region_bits(o.mask_shift + (numel + 3) / 4, 0);
  uint8_t* const mask = region_bits.data() + o.mask_shift;
  Array dx = o.in_place ? grad : Array(dtype, shape.sizes(), y_order, 0, o.shift);
  Array dcap = cap_array(o.cap_dtype, shape, o.cap_gap),
        dbias(o.bias_dtype, shape.cap_sizes(), shape.cap_order(), o.cap_gap);

  std::vector<double> expected(numel);
  Expected to_cap(shape.shared_cap ? 1 : caps), to_bias(caps);
  for (int64_t i = 0; i < numel; ++i) {
    const int64_t c = shape.cap_of(i);
    const double m = rounded(dtype, cap.get(c)), g = grad.get(i);
    y.set(i, value(x.get(i), m));
    const int where = region(x.get(i), m);
    mask[i / 4] = static_cast<uint8_t>(mask[i / 4] | where << (2 * (i % 4)));
    expected[i] = where == kInsideRegion ? g : 0.0;
    if (where == kInsideRegion) to_bias.add(c, g);
    if (where == kCappedRegion) to_cap.add(shape.shared_cap ? 0 : c, g);
  }
  Backward pass;
  pass.grad = grad.operand();
  if (o.mask)
    pass.mask = mask;
  else
    pass.y = y.operand();
  if (!o.mask || o.penalty) pass.cap = cap.per_cap();
  if (o.dx) pass.dx = dx.operand();
  if (o.dcap) pass.dcap = dcap.per_cap();
  if (o.dbias) pass.dbias = dbias.per_cap();
  const float grad_penalty = 1.5f;
  if (o.penalty) {
    pass.grad_penalty = {const_cast<float*>(&grad_penalty), DType::kFloat32};
    pass.balancer = 0.25;
    for (size_t c = 0; c < to_cap.sum.size(); ++c) to_cap.add(c, 0.75L * cap.get(c));
  }
  Space space(backward_workspace(described.problem, pass));
  const int before = host_cuda::launches;
  const Status status = backward(described.problem, pass, space.memory.get());
  CHECK(status.ok(), which + ": " + status.kernel);
  CHECK(host_cuda::launches - before <= 1, which);
  if (o.dx)
    for (int64_t i = 0; i < numel; ++i)
      CHECK(same(dx.get(i), expected[i]), which + " dx at " + std::to_string(i) + ": got " + std::to_string(dx.get(i)));
  if (o.dcap)
    for (size_t c = 0; c < to_cap.sum.size(); ++c)
      check_sum(dcap, c, to_cap.sum[c], to_cap.magnitude[c], eps_of(dtype, o.cap_dtype), which + " dcap");
  if (o.dbias)
    for (int64_t c = 0; c < caps; ++c)
      check_sum(dbias, c, to_bias.sum[c], to_bias.magnitude[c], eps_of(dtype, o.bias_dtype), which + " dbias");
}

Options variant_of(DType dtype, int variant) {
  Options o{};
  o.cap_dtype = variant < 6 || variant == 18 ? dtype : kDTypes[variant % 4];
  o.bias_dtype = kDTypes[(variant / 3) % 4];
  o.mask = variant % 2 == 1 || variant == 18;
  o.dbias = variant == 2 || variant == 3 || variant == 9 || (variant >= 14 && variant < 18);
  o.dx = variant != 4 && variant != 14;
  o.dcap = variant != 5 && variant != 15;
  o.penalty = variant % 4 == 2 && variant != 18;
  o.in_place = variant == 7 || variant == 8;
  o.gap = variant == 8 || variant == 9 ? 2 : 0;
  o.shift = variant == 10 || variant == 11 ? 1 : 0;
  o.cap_gap = variant == 12 || variant == 9 ? 3 : 0;
  o.expanded_grad = variant == 12 || variant == 13;
  o.transposed_y = variant == 10 || variant == 16;
  o.mask_shift = variant == 17 || variant == 18 ? 1 : 0;
  if (variant >= 16) o.multiprocessors = variant == 16 ? 1 : 7;
  return o;
}

void same_bits_again(const Shape& shape) {
  Array x(DType::kFloat32, shape.sizes(), {0, 1, 2}), grad(DType::kFloat32, shape.sizes(), {0, 1, 2});
  x.fill(0);
  grad.fill(0);
  Array cap = cap_array(DType::kFloat32, shape).fill_with(0.5);
  for (int64_t i = 0; i < x.count; ++i) x.set(i, value(x.get(i), 0.5));
  Described described(DType::kFloat32, shape, 4);
  std::vector<double> first;
  for (const bool backwards : {false, true}) {
    host_cuda::backwards = backwards;
    Array dcap = cap_array(DType::kFloat32, shape);
    Backward pass;
    pass.grad = grad.operand();
    pass.y = x.operand();
    pass.cap = cap.per_cap();
    pass.dcap = dcap.per_cap();
    Space space(backward_workspace(described.problem, pass));
    CHECK(backward(described.problem, pass, space.memory.get()).ok());
    for (int64_t c = 0; c < (shape.shared_cap ? 1 : shape.layout.caps); ++c) {
      if (!backwards) first.push_back(dcap.get(c));
      CHECK(first[c] == dcap.get(c), shape.text());
    }
  }
}

void failures() {
  const Shape shape{{64, 1, 4096}};
  Described described(DType::kFloat32, shape, 4);
  Array y(DType::kFloat32, shape.sizes(), {0, 1, 2}), cap(DType::kFloat32, {1}, {0}), dcap(DType::kFloat32, {1}, {0});
  y.fill_with(1);
  cap.fill_with(1);
  Backward pass;
  pass.grad = pass.y = y.operand();
  pass.dcap = dcap.per_cap();
  CHECK_THROWS(backward(described.problem, pass, nullptr), "cap: needed");
  pass.cap = cap.per_cap();
  Space space(backward_workspace(described.problem, pass));
  host_cuda::error_of_zero = 700;
  Status failed = backward(described.problem, pass, space.memory.get());
  CHECK(failed.error == 700 && std::string(failed.kernel) == "cudaMemsetAsync");
  host_cuda::error_of_launch = 701;
  failed = backward(described.problem, pass, space.memory.get());
  CHECK(failed.error == 701 && std::string(failed.kernel) == "dreluop backward by rows");
}

}  // namespace

int main() {
  const Shape shapes[] = {{{1, 1, 1}},
                          {{3, 1, 7}},
                          {{1, 1, 9001}},
                          {{2, 3, 0}},
                          {{0, 3, 2}},
                          {{2, 0, 3}},
                          {{3, 16, 1}},
                          {{5, 8, 1}},
                          {{700, 24, 1}},
                          {{129, 5, 1}},
                          {{4, 3, 7}},
                          {{3, 7, 8}},
                          {{40, 5, 49}},
                          {{3, 3, 1031}},
                          {{300, 5, 3}},
                          {{3, 4099, 1}},
                          {{2, 3072, 1}},
                          {{100, 320, 1}},
                          {{2, 3, 5000}},
                          {{70, 13, 1}},
                          {{50, 24, 1}, false, true},
                          {{3, 8, 6}, false, true},
                          {{4, 6, 9}, true},
                          {{3, 3, 1030}, true},
                          {{130, 8, 1}, true},
                          {{90, 264, 1}, true}};
  int runs = 0;
  for (const Shape& shape : shapes)
    for (const DType dtype : kDTypes)
      for (int variant = 0; variant < 19; ++variant) {
        // Of the large shapes every dtype gets a third of the variants.
        if (shape.numel() > 2000 && (variant + static_cast<int>(dtype)) % 3 != 0) continue;
        host_cuda::backwards = runs % 2 == 1;
        check_backward(dtype, shape, variant_of(dtype, variant));
        ++runs;
      }
  // Equal terms, where plain sums drift.
  for (const Shape& shape : {Shape{{1, 1, 1 << 18}}, Shape{{1 << 14, 8, 1}}, Shape{{8, 2, 1 << 12}}})
    for (const DType dtype : kDTypes)
      for (const int multiprocessors : {1, 8}) {
        Options o{};
        o.cap_dtype = o.bias_dtype = DType::kFloat32;
        o.constant = true;
        o.multiprocessors = multiprocessors;
        check_backward(dtype, shape, o);
      }
  for (const Shape& shape : {Shape{{1, 1, 70001}}, Shape{{2000, 24, 1}}, Shape{{500, 8, 1}, true}, Shape{{9, 3, 2000}}})
    same_bits_again(shape);
  failures();
  std::printf("cuda_host backward: ok, %d runs\n", runs);
}
