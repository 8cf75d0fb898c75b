// The CPU passes against the scalar rule, element by element, on buffers that end where the tensor ends: under
// AddressSanitizer a read or write past them is an error.
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <thread>

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/primitives.h"
#include "smoothed_slope.h"

using namespace dreluop;
using namespace dreluop::cpu;

namespace {

void serial(int64_t n, int64_t, const Body& body) {
  if (n > 0) body(0, n);
}

// Uneven segments on threads of their own, last segment first.
void threaded(int64_t n, int64_t, const Body& body) {
  std::vector<std::thread> threads;
  const int64_t segment = std::max<int64_t>(1, n / 3 + 1);
  for (int64_t begin = n - 1 - (n - 1) % segment; begin >= 0 && n > 0; begin -= segment)
    threads.emplace_back([&body, begin, end = std::min(n, begin + segment)] { body(begin, end); });
  for (std::thread& thread : threads) thread.join();
}

template <class T>
struct Array {
  explicit Array(int64_t n) : data(new T[n]), size(n) {}
  T& operator[](int64_t i) { return data[i]; }
  std::unique_ptr<T[]> data;
  int64_t size;
};

std::mt19937 generator(1);

template <class Traits>
Array<typename Traits::Storage> random_values(int64_t n) {
  static const double special[] = {std::nan(""), INFINITY, -INFINITY, 0.0, -0.0, 1.0, 1e-40, 0.5};
  std::normal_distribution<double> normal;
  Array<typename Traits::Storage> values(n);
  for (int64_t i = 0; i < n; ++i)
    values[i] = Traits::round(generator() % 8 == 0 ? special[generator() % 8] : normal(generator));
  return values;
}

template <class T>
bool same(T a, T b) {
  return memcmp(&a, &b, sizeof(T)) == 0;
}

template <class Traits>
bool equal_or_nan(typename Traits::Storage a, typename Traits::Storage b) {
  return Traits::is_nan(a) ? Traits::is_nan(b) : same(a, b);
}

// Arrays over the dimensions (outer, caps, inner), x and the gradient with `gap` unused elements between neighbors, and
// what the scalar rule makes of them.
template <class Traits>
struct Case {
  using T = typename Traits::Storage;
  using Sum = std::conditional_t<sizeof(T) == sizeof(double), double, float>;
  static constexpr DType kDType = Traits::kDType,
                         kSumDType = sizeof(T) == sizeof(double) ? DType::kFloat64 : DType::kFloat32;

  Case(const CapLayout& given, int64_t gap, ParallelFor parallel_for)
      : layout(given),
        numel(layout.outer * layout.caps * layout.inner),
        step(1 + gap),
        sizes{layout.outer, layout.caps, layout.inner},
        dense{layout.caps * layout.inner, layout.inner, 1},
        strides{dense[0] * step, dense[1] * step, step},
        x(random_values<Traits>(numel == 0 ? 0 : (numel - 1) * step + 1)),
        g(random_values<Traits>(x.size)),
        caps(random_values<Traits>(layout.caps)),
        v(random_values<Traits>(layout.caps)),
        wide_caps(layout.caps),
        y(numel),
        out(numel),
        mask((numel + 3) / 4),
        which(std::to_string(static_cast<int>(kDType)) + ": " + std::to_string(layout.outer) + " x " +
              std::to_string(layout.caps) + " x " + std::to_string(layout.inner) + " gap " + std::to_string(gap)) {
    problem.dtype = kDType;
    problem.rank = 3;
    problem.sizes = sizes.data();
    problem.layout = layout;
    problem.cap_rank = 1;
    problem.cap_sizes = &layout.caps;
    problem.parallel_for = parallel_for;
    for (int64_t c = 0; c < layout.caps; ++c) wide_caps[c] = Traits::upcast(caps[c]);
  }
  Case(const Case&) = delete;

  Operand strided(Array<T>& a) { return {a.data.get(), strides.data()}; }
  Operand packed(Array<T>& a) { return {a.data.get(), dense.data()}; }
  template <class Value>
  PerCap per_cap(Array<Value>& a, DType dtype) {
    return {a.data.get(), dtype, &one};
  }
  PerCap per_cap() { return per_cap(caps, kDType); }
  int64_t cap_of(int64_t i) const { return i / layout.inner % layout.caps; }

  const int64_t one = 1;
  const CapLayout layout;
  const int64_t numel, step;
  const DimVector sizes, dense, strides;
  Array<T> x, g, caps, v;
  Array<double> wide_caps;
  Array<T> y, out;
  Array<uint8_t> mask;
  const std::string which;
  Problem problem;
};

template <class Traits>
Forward forward_of(Case<Traits>& in, Array<typename Traits::Storage>& y) {
  Forward pass;
  pass.x = in.strided(in.x);
  pass.y = in.packed(y);
  pass.cap = in.per_cap();
  pass.mask = in.mask.data.get();
  return pass;
}

// Per cap, the sum of the gradients of a region in double, and of their magnitudes.
template <class Traits>
struct Expected {
  Expected(Case<Traits>& in, Region region) : sums(in.layout.caps, 0), magnitudes(in.layout.caps, 0) {
    for (int64_t i = 0; i < in.numel; ++i) {
      if (region_in_byte(in.mask[i / 4], i % 4) != region) continue;
      sums[in.cap_of(i)] += Traits::upcast(in.g[i * in.step]);
      magnitudes[in.cap_of(i)] += std::abs(Traits::upcast(in.g[i * in.step]));
    }
  }
  void check(const std::vector<double>& got, double bound, const std::string& which) const {
    for (size_t c = 0; c < sums.size(); ++c)
      CHECK(std::isfinite(sums[c]) ? std::abs(got[c] - sums[c]) <= bound * magnitudes[c]
                                   : std::isnan(sums[c]) == std::isnan(got[c]) && !std::isfinite(got[c]),
            which);
  }
  std::vector<double> sums, magnitudes;
};

template <class Traits>
void check_forward(Case<Traits>& in) {
  forward(in.problem, forward_of(in, in.y));
  for (int64_t i = 0; i < in.numel; ++i) {
    const auto m = in.caps[in.cap_of(i)], expected = capped_value<Traits>(in.x[i * in.step], m);
    CHECK(equal_or_nan<Traits>(in.y[i], expected), in.which);
    CHECK(region_in_byte(in.mask[i / 4], i % 4) == region_of<Traits>(expected, m), in.which);
  }
}

// Sums in double where the caps are given so; where they need be good to float only, they may be rounded to it twice.
template <class Traits>
struct Sums {
  Sums(Case<Traits>& in, Backward pass, bool in_double, bool wants_cap, bool wants_bias) {
    const DType dtype = in_double ? DType::kFloat64 : Case<Traits>::kSumDType;
    const int64_t caps = in.layout.caps;
    Array<double> dcap(caps), dbias(caps);
    pass.cap = in_double ? in.per_cap(in.wide_caps, DType::kFloat64) : in.per_cap();
    if (wants_cap) pass.dcap = in.per_cap(dcap, dtype);
    if (wants_bias) pass.dbias = in.per_cap(dbias, dtype);
    backward(in.problem, pass);
    const auto values = [&](const Array<double>& sums) {
      std::vector<double> result;
      for (int64_t c = 0; c < caps; ++c)
        result.push_back(dtype == DType::kFloat64 ? sums.data[c] : reinterpret_cast<const float*>(sums.data.get())[c]);
      return result;
    };
    if (wants_cap) cap = values(dcap);
    if (wants_bias) bias = values(dbias);
  }
  std::vector<double> cap, bias;
};

bool same_or_nan(const std::vector<double>& a, const std::vector<double>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](double one, double other) {
    return same(one, other) || (std::isnan(one) && std::isnan(other));
  });
}

template <class Traits>
void check_backward(Case<Traits>& in) {
  using T = typename Traits::Storage;
  const Expected<Traits> cap_sums(in, kCapped), bias_sums(in, kInside);
  std::vector<double> first[2];
  for (const auto& [with_mask, in_double] :
       {std::pair(false, true), std::pair(false, false), std::pair(true, true), std::pair(true, false)}) {
    Array<T> dx(in.numel);
    Backward pass;
    pass.grad = in.strided(in.g);
    if (with_mask)
      pass.mask = in.mask.data.get();
    else
      pass.y = in.packed(in.y);
    const Sums<Traits> only_cap(in, pass, in_double, true, false), only_bias(in, pass, in_double, false, true);
    pass.dx = in.packed(dx);
    const Sums<Traits> all(in, pass, in_double, true, true);
    const double bound = 1e-15 * (16 + in.layout.outer * in.layout.inner) +
                         (in_double || sizeof(T) == sizeof(double) ? 0 : std::numeric_limits<float>::epsilon());
    cap_sums.check(all.cap, bound, in.which);
    bias_sums.check(all.bias, bound, in.which);
    for (int64_t i = 0; i < in.numel; ++i) {
      const bool inside = region_in_byte(in.mask[i / 4], i % 4) == kInside;
      CHECK(same(dx[i], inside ? in.g[i * in.step] : Traits::zero()), in.which);
    }
    std::vector<double>& before = first[in_double];
    if (before.empty()) before = all.cap;
    CHECK(same_or_nan(before, all.cap), in.which);
    CHECK(same_or_nan(only_cap.cap, all.cap) && same_or_nan(only_bias.bias, all.bias), in.which);
  }
}

template <class Traits>
void check_jvp_and_straight_through(Case<Traits>& in) {
  for (const bool with_mask : {false, true}) {
    Array<typename Traits::Storage> through(in.numel);
    Jvp jvp_pass;
    Surrogate surrogate_pass;
    jvp_pass.u = surrogate_pass.grad = in.strided(in.g);
    jvp_pass.out = in.packed(in.out);
    surrogate_pass.dx = in.packed(through);
    jvp_pass.cap = in.per_cap();
    jvp_pass.v = in.per_cap(in.v, Traits::kDType);
    if (with_mask)
      jvp_pass.mask = surrogate_pass.mask = in.mask.data.get();
    else
      jvp_pass.y = surrogate_pass.y = in.packed(in.y);
    jvp(in.problem, jvp_pass);
    surrogate(in.problem, surrogate_pass);
    for (int64_t i = 0; i < in.numel; ++i) {
      const uint8_t region = region_in_byte(in.mask[i / 4], i % 4);
      const auto u = in.g[i * in.step], at_cap = region == kCapped ? in.v[in.cap_of(i)] : Traits::zero();
      CHECK(same(in.out[i], region == kInside ? u : at_cap), in.which);
      CHECK(same(through[i], region != kOff ? u : Traits::zero()), in.which);
    }
  }
}

template <class Traits>
void check_saturation(Case<Traits>& in) {
  const int64_t caps = in.layout.caps, samples = std::max<int64_t>(1, in.layout.outer);
  std::vector<int64_t> expected(3 * caps, 0), got(3 * caps, -1);
  std::vector<uint8_t> has_gradient(samples, 0), has_gradient_got(samples, 7);
  for (int64_t i = 0; i < in.numel; ++i) {
    const uint8_t region = region_in_byte(in.mask[i / 4], i % 4);
    ++expected[region * caps + in.cap_of(i)];
    if (region == kInside) has_gradient[i / (caps * in.layout.inner)] = 1;
  }
  Saturation pass;
  pass.x = in.strided(in.x);
  pass.cap = in.per_cap();
  pass.counts = got.data();
  pass.counts_strides = &in.one;
  pass.has_gradient = has_gradient_got.data();
  pass.samples = samples;
  pass.sample_inner = std::max<int64_t>(1, caps * in.layout.inner);
  saturation(in.problem, pass);
  CHECK(got == expected && has_gradient_got == has_gradient, in.which);
}

template <class Traits>
void check_soft(Case<Traits>& in) {
  using Sum = typename Case<Traits>::Sum;
  const auto wide = [](auto value) { return static_cast<Sum>(Traits::upcast(value)); };
  Array<Sum> widths(in.layout.caps);
  for (int64_t c = 0; c < in.layout.caps; ++c) widths[c] = static_cast<Sum>(c % 5 + 1) / 4;
  Surrogate pass;
  pass.grad = in.strided(in.g);
  pass.y = in.strided(in.x);
  pass.dx = in.packed(in.out);
  pass.cap = in.per_cap();
  pass.width = in.per_cap(widths, Case<Traits>::kSumDType);
  surrogate(in.problem, pass);
  for (int64_t i = 0; i < in.numel; ++i) {
    const Sum m = wide(in.caps[in.cap_of(i)]), width = widths[in.cap_of(i)], x = wide(in.x[i * in.step]);
    const Sum expected = softened(wide(in.g[i * in.step]), x, m, width);
    CHECK(equal_or_nan<Traits>(in.out[i], Traits::round(expected)), in.which);
    if (m <= 0) continue;
    const SmoothedSlope slope(x, m, width);
    const long double got = smoothed_slope(x, m, width), want = slope.value;
    const long double error = slope.relative_error() * std::numeric_limits<Sum>::epsilon();
    CHECK(std::isnan(want) ? std::isnan(got)
          : want == 0      ? got == 0
                           : std::abs(got - want) <= error * want + 2 * std::numeric_limits<Sum>::min(),
          in.which);
  }
}

template <class Traits>
void check_bias_and_residual(Case<Traits>& in) {
  using Sum = typename Case<Traits>::Sum;
  Array<Sum> bias(in.layout.caps);
  for (int64_t c = 0; c < in.layout.caps; ++c) bias[c] = static_cast<Sum>(c % 3) - 1;
  for (const bool has_bias : {false, true}) {
    for (const bool has_residual : {false, true}) {
      Forward pass = forward_of(in, in.out);
      if (has_bias) pass.bias = in.per_cap(bias, Case<Traits>::kSumDType);
      if (has_residual) pass.residual = in.strided(in.g);
      forward(in.problem, pass);
      for (int64_t i = 0; i < in.numel; ++i) {
        Sum total = static_cast<Sum>(Traits::upcast(in.x[i * in.step]));
        if (has_bias) total += bias[in.cap_of(i)];
        if (has_residual) total += static_cast<Sum>(Traits::upcast(in.g[i * in.step]));
        const auto m = in.caps[in.cap_of(i)], expected = capped_value<Traits>(Traits::round(total), m);
        CHECK(equal_or_nan<Traits>(in.out[i], expected), in.which);
        CHECK(region_in_byte(in.mask[i / 4], i % 4) == region_of<Traits>(expected, m), in.which);
      }
    }
  }
}

template <class Traits>
void check(const CapLayout& layout, int64_t gap, ParallelFor parallel_for) {
  Case<Traits> in(layout, gap, parallel_for);
  check_forward(in);
  check_backward(in);
  check_jvp_and_straight_through(in);
  check_saturation(in);
  check_soft(in);
  check_bias_and_residual(in);
  Forward in_place = forward_of(in, in.y);
  in_place.y = in_place.x;
  in_place.mask = nullptr;
  forward(in.problem, in_place);
  for (int64_t i = 0; i < in.numel; ++i) CHECK(equal_or_nan<Traits>(in.x[i * in.step], in.y[i]), in.which);
}

// The sum of equal terms, where serial sums drift: within 8 eps of the sum of magnitudes.
template <class Traits>
void check_constant_sum(const CapLayout& layout, double eps) {
  Case<Traits> in(layout, 0, threaded);
  for (int64_t i = 0; i < in.numel; ++i) in.y[i] = Traits::round(1), in.g[i] = Traits::round(0.1);
  for (int64_t c = 0; c < layout.caps; ++c) in.caps[c] = Traits::round(1);
  Backward pass;
  pass.grad = in.packed(in.g);
  pass.y = in.packed(in.y);
  const long double expected = static_cast<long double>(Traits::upcast(in.g[0])) * (in.numel / layout.caps);
  for (const double got : Sums<Traits>(in, pass, false, true, false).cap)
    CHECK(std::abs(got - expected) <= 8 * eps * expected, std::to_string(in.numel) + ": " + std::to_string(got));
}

}  // namespace

int main() {
  std::printf("kernels: %s\n", name_of(capability()));
  const CapLayout layouts[] = {{0, 3, 5},     {1, 1, 1},   {1, 1, 7},   {1, 1, 1024}, {1, 1, 40001}, {3, 1, 1031},
                               {4, 3, 1},     {64, 1, 1},  {5, 512, 1}, {70, 513, 1}, {2, 3001, 1},  {200, 64, 1},
                               {9, 5, 4},     {3, 7, 31},  {3, 7, 32},  {2, 5, 49},   {40, 3, 49},   {2, 3, 1025},
                               {1, 2, 17000}, {300, 5, 3}, {1, 2, 2}};
  for (const CapLayout& layout : layouts)
    for (const int64_t gap : {0, 2})
      for (const ParallelFor parallel_for : {serial, threaded}) {
        check<Float32>(layout, gap, parallel_for);
        check<Float64>(layout, gap, parallel_for);
        check<Float16>(layout, gap, parallel_for);
        check<BFloat16>(layout, gap, parallel_for);
      }
  const double float_eps = std::numeric_limits<float>::epsilon(), double_eps = std::numeric_limits<double>::epsilon();
  for (const int64_t n : {64, 1000, 16384, 1 << 20}) {
    for (const CapLayout& layout : {CapLayout{1, 1, n}, CapLayout{n / 4, 4, 1}, CapLayout{n / 2, 2, 1}}) {
      check_constant_sum<Float32>(layout, float_eps);
      check_constant_sum<Float64>(layout, double_eps);
      check_constant_sum<Float16>(layout, float_eps);
      check_constant_sum<BFloat16>(layout, float_eps);
    }
  }
  std::puts("kernels: ok");
}
