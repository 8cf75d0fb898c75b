// The kernels of batch norm on the host: outputs by the same steps, bit for bit; statistics and sums against long
// double.
#include "harness.h"

using namespace testing;

namespace {

constexpr double kEps = 1e-5;

struct Options {
  DType channel_dtype = DType::kFloat32;
  bool trains = true, residual = false, mask = false, weight = true, bias = true;
  bool dx = true, dweight = true, dbias = true, dcap = true, dresidual = false;
  double specials = 0;
  int64_t gap = 0, shift = 0, channel_gap = 0, mask_shift = 0;
  int multiprocessors = 2;
};

Options variant_of(int variant) {
  Options o;
  o.trains = variant % 4 != 3;
  o.residual = variant % 3 == 1;
  o.mask = variant % 3 == 1 || variant == 9;
  o.dresidual = o.residual;
  if (variant >= 4) o.channel_dtype = kDTypes[variant % 4];
  o.weight = variant != 5;
  o.bias = variant != 6;
  o.dx = variant != 7 && variant != 13;
  o.dweight = variant != 8 && variant != 13 && o.weight;
  o.dbias = variant != 8 && variant != 13 && o.bias;
  o.dcap = variant != 8 && variant != 11 && variant != 13;
  o.gap = variant == 10 ? 2 : 0;
  o.shift = variant == 9 || variant == 12 ? 1 : 0;
  o.channel_gap = variant == 6 ? 3 : 0;
  o.mask_shift = variant == 13 ? 1 : 0;
  o.specials = o.trains ? 0 : 0.05;
  o.multiprocessors = variant == 2 ? 1 : variant == 4 ? 7 : 2;
  return o;
}

DType wide(DType dtype) { return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }
double eps_of(DType dtype) {
  return dtype == DType::kFloat64 ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
}
double eps_of_storage(DType dtype) {
  return dtype == DType::kBFloat16 ? 0x1p-7 : dtype == DType::kFloat16 ? 0x1p-10 : eps_of(dtype);
}

// The tensors of one call of forward and backward.
struct Data {
  Data(DType dtype, const Shape& shape, const Options& o) : dtype(dtype), shape(shape), o(o) {
    for (Array* t : {&x, &grad, &residual, &y, &dx, &dresidual})
      *t = Array(dtype, shape.sizes(), {0, 1, 2}, o.gap, o.shift);
    x.fill(o.specials);
    grad.fill(o.specials);
    residual.fill(o.specials);
    for (Array* t : {&weight, &bias, &dweight, &dbias}) *t = channels(o.channel_dtype);
    cap = cap_array(o.channel_dtype, shape, o.channel_gap);
    dcap = cap_array(o.channel_dtype, shape, o.channel_gap);
    mean = channels(wide(dtype));
    var = channels(wide(dtype));
    weight.fill(0);
    bias.fill(0);
    cap.fill(0.2);
    mean.fill(0);
    for (int64_t c = 0; c < var.count; ++c) var.set(c, 0.5 + static_cast<double>(c % 3));
    region_bits.assign(o.mask_shift + (shape.numel() + 3) / 4, 0xff);
  }

  Array channels(DType of) const { return Array(of, {shape.layout.caps}, {0}, o.channel_gap); }
  uint8_t* mask() { return region_bits.data() + o.mask_shift; }
  double real(double value) const { return rounded(wide(dtype), value); }

  template <class Pass>
  void give(Pass* pass) const {
    pass->x = x.operand();
    if (o.weight) pass->weight = weight.per_cap();
    if (o.bias) pass->bias = bias.per_cap();
    pass->cap = cap.per_cap();
    pass->mean = mean.per_cap();
    pass->var = var.per_cap();
    pass->eps = kEps;
    pass->trains = o.trains;
  }

  double inverse(int64_t c) const { return 1 / std::sqrt(var.get(c) + kEps); }
  double weight_of(int64_t c) const { return o.weight ? weight.get(c) : 1; }
  double scale(int64_t c) const { return real(weight_of(c) * inverse(c)); }
  double cap_of(int64_t i) const { return rounded(dtype, cap.get(shape.shared_cap ? 0 : shape.cap_of(i))); }
  double distance(int64_t i) const { return real(x.get(i) - mean.get(shape.cap_of(i))); }
  // Each step in fp32 (fp64), by the mean and variance as they are stored; then one rounding.
  double t(int64_t i) const {
    const int64_t c = shape.cap_of(i);
    double t = real(real(distance(i) * scale(c)) + (o.bias ? real(bias.get(c)) : 0));
    if (o.residual) t = real(t + residual.get(i));
    return rounded(dtype, t);
  }

  const DType dtype;
  const Shape& shape;
  const Options& o;
  Array x, grad, residual, y, dx, dresidual, weight, bias, cap, dweight, dbias, dcap, mean, var;
  std::vector<uint8_t> region_bits;
};

void check_statistics(const Data& d, const std::string& which) {
  const auto n = static_cast<long double>(d.shape.layout.outer * d.shape.layout.inner);
  std::vector<long double> sum(d.mean.count, 0), square(d.mean.count, 0), magnitude(d.mean.count, 0);
  for (int64_t i = 0; i < d.x.count; ++i) {
    sum[d.shape.cap_of(i)] += d.x.get(i) / n;
    magnitude[d.shape.cap_of(i)] += std::abs(d.x.get(i)) / n;
  }
  for (int64_t i = 0; i < d.x.count; ++i) {
    const long double distance = d.x.get(i) - sum[d.shape.cap_of(i)];
    square[d.shape.cap_of(i)] += distance * distance / n;
  }
  for (int64_t c = 0; c < d.mean.count; ++c) {
    const double eps = eps_of(d.dtype);
    CHECK(std::abs(d.mean.get(c) - sum[c]) <= 4 * eps * (magnitude[c] + 1), which + " mean");
    CHECK(std::abs(d.var.get(c) - square[c]) <= 32 * eps * (square[c] + eps), which + " var");
  }
}

void check_forward(Data& d, const Described& described, const std::string& which) {
  BatchNorm pass;
  d.give(&pass);
  pass.y = d.y.operand();
  if (d.o.residual) pass.residual = d.residual.operand();
  if (d.o.mask) pass.mask = d.mask();
  Space space(batch_norm_workspace(described.problem, pass));
  const int before = host_cuda::launches;
  const Status status = batch_norm(described.problem, pass, space.memory.get());
  CHECK(status.ok(), which + ": " + status.kernel);
  CHECK(host_cuda::launches - before <= 1 + d.o.trains + d.o.mask, which);
  if (d.o.trains && d.x.count > 0) check_statistics(d, which);
  for (int64_t i = 0; i < d.x.count; ++i) {
    const double expected = value(d.t(i), d.cap_of(i));
    CHECK(same(d.y.get(i), expected), which + " y at " + std::to_string(i) + ": got " + std::to_string(d.y.get(i)) +
                                          ", expected " + std::to_string(expected));
    if (d.o.mask)
      CHECK((d.mask()[i / 4] >> (2 * (i % 4)) & 3) == region(d.t(i), d.cap_of(i)),
            which + " mask at " + std::to_string(i));
  }
  if (d.o.mask && d.x.count % 4 != 0) CHECK(d.region_bits.back() >> (2 * (d.x.count % 4)) == 0, which + " mask ends");
}

struct Sums {
  explicit Sums(int64_t n) : sum(n, 0), magnitude(n, 0) {}
  void add(int64_t c, long double term) {
    sum[c] += term;
    magnitude[c] += std::abs(term);
  }
  std::vector<long double> sum, magnitude;
};

void check_dx(const Data& d, const Sums& inside, const Sums& projected, const std::string& which) {
  const auto n = static_cast<double>(d.shape.layout.outer * d.shape.layout.inner);
  for (int64_t i = 0; i < d.x.count; ++i) {
    const int64_t c = d.shape.cap_of(i);
    const double u = region(d.t(i), d.cap_of(i)) == kInsideRegion ? d.grad.get(i) : 0.0;
    if (d.o.dresidual) CHECK(same(d.dresidual.get(i), u), which + " dresidual at " + std::to_string(i));
    if (!d.o.dx) continue;
    const double got = d.dx.get(i), scaled = d.real(u * d.scale(c));
    if (!d.o.trains) {
      CHECK(same(got, rounded(d.dtype, scaled)), which + " dx at " + std::to_string(i));
      continue;
    }
    const double inverse = d.inverse(c), scale = d.weight_of(c) * inverse;
    const double along = scale * inverse * inverse * projected.sum[c] / n * d.distance(i);
    const double magnitude =
        std::abs(scaled) + std::abs(along) +
        std::abs(scale) / n *
            (inside.magnitude[c] + std::abs(d.distance(i)) * inverse * inverse * projected.magnitude[c]);
    const double expected = u * scale - scale * inside.sum[c] / n - along;
    CHECK(std::abs(got - expected) <= 16 * eps_of(d.dtype) * magnitude + eps_of_storage(d.dtype) * std::abs(expected) +
                                          (d.dtype == DType::kFloat16 ? 0x1p-24 : 0),
          which + " dx at " + std::to_string(i) + ": got " + std::to_string(got) + ", expected " +
              std::to_string(expected));
  }
}

void check_backward(Data& d, const Described& described, const std::string& which) {
  BatchNormBackward pass;
  d.give(&pass);
  pass.grad = d.grad.operand();
  if (d.o.dx) pass.dx = d.dx.operand();
  if (d.o.dresidual) pass.dresidual = d.dresidual.operand();
  if (d.o.dweight) pass.dweight = d.dweight.per_cap();
  if (d.o.dbias) pass.dbias = d.dbias.per_cap();
  if (d.o.dcap) pass.dcap = d.dcap.per_cap();
  if (d.o.mask) pass.mask = d.mask();
  Space space(batch_norm_backward_workspace(described.problem, pass));
  const int before = host_cuda::launches;
  const Status status = batch_norm_backward(described.problem, pass, space.memory.get());
  CHECK(status.ok(), which + ": " + status.kernel);
  CHECK(host_cuda::launches - before <= 2, which);
  if (d.x.count == 0) return;
  Sums inside(d.mean.count), projected(d.mean.count), capped(d.shape.shared_cap ? 1 : d.mean.count);
  for (int64_t i = 0; i < d.x.count; ++i) {
    const int64_t c = d.shape.cap_of(i);
    const int where = region(d.t(i), d.cap_of(i));
    const double u = where == kInsideRegion ? d.grad.get(i) : 0;
    inside.add(c, u);
    projected.add(c, static_cast<long double>(u) * d.distance(i) * d.inverse(c));
    projected.magnitude[c] += 1e-30L;  // of what rounds to a subnormal number
    if (where == kCappedRegion) capped.add(d.shape.shared_cap ? 0 : c, d.grad.get(i));
  }
  const double eps = eps_of(d.dtype);
  for (int64_t c = 0; c < d.mean.count; ++c) {
    if (d.o.dbias) check_sum(d.dbias, c, inside.sum[c], inside.magnitude[c], eps, which + " dbias");
    if (d.o.dweight) check_sum(d.dweight, c, projected.sum[c], projected.magnitude[c], eps, which + " dweight");
    projected.sum[c] /= d.inverse(c);
    projected.magnitude[c] /= d.inverse(c);
  }
  if (d.o.dcap)
    for (size_t c = 0; c < capped.sum.size(); ++c)
      check_sum(d.dcap, c, capped.sum[c], capped.magnitude[c], eps, which + " dcap");
  check_dx(d, inside, projected, which);
}

void check_both(DType dtype, const Shape& shape, const Options& o, int variant) {
  const std::string which =
      shape.text() + " dtype " + std::to_string(static_cast<int>(dtype)) + " variant " + std::to_string(variant);
  const Described described(dtype, shape, o.multiprocessors);
  Data d(dtype, shape, o);
  check_forward(d, described, which);
  check_backward(d, described, which);
}

void constant_channels_have_no_variance(const Shape& shape) {
  const Options o;
  for (const double number : {0.1, 3.0, 1e6}) {
    Data d(DType::kFloat32, shape, o);
    d.x.fill_with(number);
    BatchNorm pass;
    d.give(&pass);
    pass.y = d.y.operand();
    const Described described(DType::kFloat32, shape, 4);
    Space space(batch_norm_workspace(described.problem, pass));
    CHECK(batch_norm(described.problem, pass, space.memory.get()).ok());
    for (int64_t c = 0; c < shape.layout.caps; ++c)
      CHECK(d.mean.get(c) == rounded(DType::kFloat32, number) && d.var.get(c) == 0, shape.text());
  }
}

std::vector<double> all_results(const Shape& shape, Data& d) {
  BatchNorm pass;
  d.give(&pass);
  pass.y = d.y.operand();
  const Described described(DType::kFloat32, shape, 4);
  Space space(batch_norm_workspace(described.problem, pass));
  CHECK(batch_norm(described.problem, pass, space.memory.get()).ok());
  BatchNormBackward backward;
  d.give(&backward);
  backward.grad = d.grad.operand();
  backward.dx = d.dx.operand();
  backward.dweight = d.dweight.per_cap();
  backward.dbias = d.dbias.per_cap();
  backward.dcap = d.dcap.per_cap();
  Space more(batch_norm_backward_workspace(described.problem, backward));
  CHECK(batch_norm_backward(described.problem, backward, more.memory.get()).ok());
  std::vector<double> results;
  for (const Array* t : {&d.mean, &d.var, &d.y, &d.dx, &d.dweight, &d.dbias})
    for (int64_t i = 0; i < t->count; ++i) results.push_back(t->get(i));
  results.push_back(d.dcap.get(0));
  return results;
}

void same_bits_again(const Shape& shape) {
  const Options o;
  Data d(DType::kFloat32, shape, o);
  std::vector<double> first;
  for (const bool backwards : {false, true}) {
    host_cuda::backwards = backwards;
    const auto results = all_results(shape, d);
    if (!backwards) first = results;
    CHECK(std::equal(results.begin(), results.end(), first.begin(), same), shape.text());
  }
}

void failures() {
  const Shape shape{{64, 2, 4096}};
  Options o;
  Data d(DType::kFloat32, shape, o);
  const Described described(DType::kFloat32, shape, 4);
  BatchNorm pass;
  d.give(&pass);
  CHECK_THROWS(batch_norm(described.problem, pass, nullptr), "x, y: missing");
  pass.y = d.y.operand();
  Space space(batch_norm_workspace(described.problem, pass));
  const auto failed = [&](const std::string& kernel, int error) {
    const Status status = batch_norm(described.problem, pass, space.memory.get());
    CHECK(status.error == error && status.kernel == kernel, status.kernel);
  };
  host_cuda::error_of_zero = 700;
  failed("cudaMemsetAsync", 700);
  host_cuda::error_of_launch = 701;
  failed("dreluop batch norm, moments", 701);
  host_cuda::error_of_launch = 702;
  host_cuda::launches_before_error = 1;
  failed("dreluop batch norm", 702);
  pass.mean = {};
  CHECK_THROWS(batch_norm(described.problem, pass, space.memory.get()), "cap, mean, var: missing");
  const Shape folded{{4, 24, 1}, false, true};
  CHECK_THROWS(batch_norm_workspace(Described(DType::kFloat32, folded).problem, pass), "one dimension of channels");
}

}  // namespace

int main() {
  // By rows in whole vectors, with one channel, in segments; by columns of whole vectors, repeated, cut, of short runs,
  // of tiles side by side, of rows that are no whole vectors.
  const Shape shapes[] = {{{2, 3, 0}},          {{2, 1, 7}},        {{1, 1, 9001}},    {{2, 3, 4096}},
                          {{3, 3, 1031}},       {{2, 2, 5000}},     {{3, 16, 1}},      {{700, 24, 1}},
                          {{129, 5, 1}},        {{4, 3, 7}},        {{40, 5, 49}},     {{3, 7, 8}},
                          {{2, 4099, 1}},       {{2, 3072, 1}},     {{100, 320, 1}},   {{70, 13, 1}},
                          {{300, 5, 3}},        {{4, 6, 9}, true},  {{3, 1, 7}, true}, {{3, 3, 1030}, true},
                          {{90, 264, 1}, true}, {{130, 8, 1}, true}};
  int runs = 0;
  for (const Shape& shape : shapes)
    for (const DType dtype : kDTypes)
      for (int variant = 0; variant < 14; ++variant) {
        // Of the large shapes every dtype gets a third of the variants.
        if (shape.numel() > 2000 && (variant + static_cast<int>(dtype)) % 3 != 0) continue;
        host_cuda::backwards = runs % 2 == 1;
        check_both(dtype, shape, variant_of(variant), variant);
        ++runs;
      }
  for (const Shape& shape : {Shape{{8, 3, 2000}}, Shape{{300, 24, 1}}, Shape{{40, 5, 49}}, Shape{{64, 5, 1}}})
    constant_channels_have_no_variance(shape);
  for (const Shape& shape : {Shape{{1, 1, 70001}}, Shape{{2000, 24, 1}}, Shape{{500, 8, 1}, true}, Shape{{9, 3, 2000}}})
    same_bits_again(shape);
  failures();
  std::printf("cuda_host batch norm: ok, %d runs\n", runs);
}
