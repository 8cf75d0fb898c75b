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

template <class Traits>
void check(DType dtype, const CapLayout& layout, int64_t gap, ParallelFor parallel_for) {
  using T = typename Traits::Storage;
  const int64_t numel = layout.outer * layout.caps * layout.inner;
  const std::string which = std::to_string(static_cast<int>(dtype)) + ": " + std::to_string(layout.outer) + " x " +
                            std::to_string(layout.caps) + " x " + std::to_string(layout.inner) + " gap " +
                            std::to_string(gap);
  const DimVector sizes{layout.outer, layout.caps, layout.inner}, order{0, 1, 2};
  const int64_t step = 1 + gap;
  const DimVector dense{layout.caps * layout.inner, layout.inner, 1};
  const DimVector strides{dense[0] * step, dense[1] * step, step};
  const int64_t reach = numel == 0 ? 0 : (numel - 1) * step + 1;
  auto x = random_values<Traits>(reach), g = random_values<Traits>(reach);
  auto caps = random_values<Traits>(layout.caps), v = random_values<Traits>(layout.caps);
  const Problem problem{dtype, numel, layout, caps.data.get(), parallel_for};
  const Operand x_operand(x.data.get(), sizes, strides, order), g_operand(g.data.get(), sizes, strides, order);

  Array<T> y(numel), dx(numel), out(numel), through(numel);
  Array<uint8_t> mask((numel + 3) / 4);
  const Operand y_operand(y.data.get(), sizes, dense, order), dx_operand(dx.data.get(), sizes, dense, order),
      out_operand(out.data.get(), sizes, dense, order), through_operand(through.data.get(), sizes, dense, order);
  forward(problem, x_operand, {}, y_operand, mask.data.get());
  const auto cap_of = [&](int64_t i) { return i / layout.inner % layout.caps; };
  std::vector<double> sums(layout.caps, 0), sizes_of_sums(layout.caps, 0);
  std::vector<double> inside_sums(layout.caps, 0), sizes_of_inside_sums(layout.caps, 0);
  std::vector<int64_t> inside(layout.caps, 0), capped(layout.caps, 0);
  std::vector<uint8_t> has_gradient(std::max<int64_t>(1, layout.outer), 0);
  for (int64_t i = 0; i < numel; ++i) {
    const T expected = capped_value<Traits>(x[i * step], caps[cap_of(i)]);
    CHECK(equal_or_nan<Traits>(y[i], expected), which);
    const uint8_t region = region_of<Traits>(expected, caps[cap_of(i)]);
    CHECK(region_in_byte(mask[i / 4], i % 4) == region, which);
    if (region == kCapped) {
      sums[cap_of(i)] += Traits::upcast(g[i * step]);
      sizes_of_sums[cap_of(i)] += std::abs(Traits::upcast(g[i * step]));
    }
    if (region == kInside) {
      inside_sums[cap_of(i)] += Traits::upcast(g[i * step]);
      sizes_of_inside_sums[cap_of(i)] += std::abs(Traits::upcast(g[i * step]));
    }
    inside[cap_of(i)] += region == kInside;
    capped[cap_of(i)] += region == kCapped;
    if (region == kInside) has_gradient[i / (layout.caps * layout.inner)] = 1;
  }

  Saved as_output, as_mask;
  as_output.y = y_operand;
  as_mask.mask = mask.data.get();
  // Where sums need be good to float only, they may be rounded to it twice.
  std::vector<double> first[2];
  for (const auto& [saved, in_double] : {std::pair(&as_output, true), std::pair(&as_output, false),
                                         std::pair(&as_mask, true), std::pair(&as_mask, false)}) {
    const double bound = 1e-15 * (16 + layout.outer * layout.inner) +
                         (in_double || sizeof(T) == sizeof(double) ? 0 : std::numeric_limits<float>::epsilon());
    std::vector<double> dcap(layout.caps);
    std::vector<double> dbias(layout.caps);
    backward(problem, g_operand, *saved, &dx_operand, dcap.data(), dbias.data(), in_double);
    tangent(problem, g_operand, v.data.get(), *saved, out_operand);
    surrogate(problem, g_operand, *saved, nullptr, through_operand);
    for (int64_t i = 0; i < numel; ++i) {
      const uint8_t region = region_in_byte(mask[i / 4], i % 4);
      CHECK(same(dx[i], region == kInside ? g[i * step] : Traits::zero()), which);
      const T at_cap = region == kCapped ? v[cap_of(i)] : Traits::zero();
      CHECK(same(out[i], region == kInside ? g[i * step] : at_cap), which);
      CHECK(same(through[i], region != kOff ? g[i * step] : Traits::zero()), which);
    }
    for (int64_t c = 0; c < layout.caps; ++c) {
      const bool finite = std::isfinite(sums[c]);
      CHECK(finite ? std::abs(dcap[c] - sums[c]) <= bound * sizes_of_sums[c]
                   : std::isnan(sums[c]) == std::isnan(dcap[c]) && !std::isfinite(dcap[c]),
            which);
      const bool finite_bias = std::isfinite(inside_sums[c]);
      CHECK(finite_bias ? std::abs(dbias[c] - inside_sums[c]) <= bound * sizes_of_inside_sums[c]
                        : std::isnan(inside_sums[c]) == std::isnan(dbias[c]) && !std::isfinite(dbias[c]),
            which);
    }
    std::vector<double>& before = first[in_double];
    if (before.empty()) before = dcap;
    for (int64_t c = 0; c < layout.caps; ++c) CHECK(same(before[c], dcap[c]) || std::isnan(before[c]), which);
    std::vector<double> only(layout.caps);
    backward(problem, g_operand, *saved, nullptr, only.data(), nullptr, in_double);
    for (int64_t c = 0; c < layout.caps; ++c) CHECK(same(only[c], dcap[c]) || std::isnan(only[c]), which);
    backward(problem, g_operand, *saved, &dx_operand, nullptr, nullptr, in_double);
    backward(problem, g_operand, *saved, nullptr, nullptr, only.data(), in_double);
    for (int64_t c = 0; c < layout.caps; ++c) CHECK(same(only[c], dbias[c]) || std::isnan(only[c]), which);
  }

  std::vector<int64_t> inside_got(layout.caps, 0), capped_got(layout.caps, 0);
  std::vector<uint8_t> has_gradient_got(has_gradient.size(), 0);
  saturation(problem, x_operand, {std::max<int64_t>(1, layout.outer), std::max<int64_t>(1, layout.caps * layout.inner)},
             inside_got.data(), capped_got.data(), has_gradient_got.data());
  CHECK(inside_got == inside && capped_got == capped && has_gradient_got == has_gradient, which);

  using Sum = std::conditional_t<sizeof(T) == sizeof(double), double, float>;
  Array<Sum> bias(layout.caps);
  for (int64_t c = 0; c < layout.caps; ++c) bias[c] = static_cast<Sum>(c % 3) - 1;
  Array<Sum> widths(layout.caps);
  for (int64_t c = 0; c < layout.caps; ++c) widths[c] = static_cast<Sum>(c % 5 + 1) / 4;
  Saved before_the_cap;
  before_the_cap.y = x_operand;
  surrogate(problem, g_operand, before_the_cap, widths.data.get(), out_operand);
  for (int64_t i = 0; i < numel; ++i) {
    const auto wide = [](T value) { return static_cast<Sum>(Traits::upcast(value)); };
    const Sum m = wide(caps[cap_of(i)]), width = widths[cap_of(i)];
    const Sum expected = softened(wide(g[i * step]), wide(x[i * step]), m, width);
    CHECK(equal_or_nan<Traits>(out[i], Traits::round(expected)), which);
    if (m <= 0) continue;
    const SmoothedSlope slope(wide(x[i * step]), m, width);
    const long double got = smoothed_slope(wide(x[i * step]), m, width), want = slope.value;
    const long double error = slope.relative_error() * std::numeric_limits<Sum>::epsilon();
    CHECK(std::isnan(want) ? std::isnan(got)
          : want == 0      ? got == 0
                           : std::abs(got - want) <= error * want + 2 * std::numeric_limits<Sum>::min(),
          which);
  }
  for (const bool has_bias : {false, true}) {
    for (const bool has_residual : {false, true}) {
      BiasAndResidual added;
      if (has_bias) added.bias = bias.data.get();
      if (has_residual) added.residual = &g_operand;
      forward(problem, x_operand, added, out_operand, mask.data.get());
      for (int64_t i = 0; i < numel; ++i) {
        Sum total = static_cast<Sum>(Traits::upcast(x[i * step]));
        if (has_bias) total += bias[cap_of(i)];
        if (has_residual) total += static_cast<Sum>(Traits::upcast(g[i * step]));
        const T expected = capped_value<Traits>(Traits::round(total), caps[cap_of(i)]);
        CHECK(equal_or_nan<Traits>(out[i], expected), which);
        CHECK(region_in_byte(mask[i / 4], i % 4) == region_of<Traits>(expected, caps[cap_of(i)]), which);
      }
    }
  }

  forward(problem, x_operand, {}, x_operand, nullptr);
  for (int64_t i = 0; i < numel; ++i) CHECK(equal_or_nan<Traits>(x[i * step], y[i]), which);
}

// The sum of equal terms, where serial sums drift: within 8 eps of the sum of magnitudes.
template <class Traits>
void check_constant_sum(DType dtype, int64_t n, const CapLayout& layout, double eps) {
  using T = typename Traits::Storage;
  Array<T> y(n), g(n), caps(layout.caps);
  for (int64_t i = 0; i < n; ++i) y[i] = Traits::round(1), g[i] = Traits::round(0.1);
  for (int64_t c = 0; c < layout.caps; ++c) caps[c] = Traits::round(1);
  const DimVector sizes{n}, one{1}, order{0};
  Saved saved;
  saved.y = Operand(y.data.get(), sizes, one, order);
  std::vector<double> dcap(layout.caps);
  backward({dtype, n, layout, caps.data.get(), threaded}, Operand(g.data.get(), sizes, one, order), saved, nullptr,
           dcap.data(), nullptr, false);
  const long double expected = static_cast<long double>(Traits::upcast(g[0])) * (n / layout.caps);
  for (const double got : dcap)
    CHECK(std::abs(got - expected) <= 8 * eps * expected, std::to_string(n) + ": " + std::to_string(got));
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
        check<Float32>(DType::kFloat32, layout, gap, parallel_for);
        check<Float64>(DType::kFloat64, layout, gap, parallel_for);
        check<Float16>(DType::kFloat16, layout, gap, parallel_for);
        check<BFloat16>(DType::kBFloat16, layout, gap, parallel_for);
      }
  const double float_eps = std::numeric_limits<float>::epsilon(), double_eps = std::numeric_limits<double>::epsilon();
  for (const int64_t n : {64, 1000, 16384, 1 << 20}) {
    for (const CapLayout& layout : {CapLayout{1, 1, n}, CapLayout{n / 4, 4, 1}, CapLayout{n / 2, 2, 1}}) {
      check_constant_sum<Float32>(DType::kFloat32, n, layout, float_eps);
      check_constant_sum<Float64>(DType::kFloat64, n, layout, double_eps);
      check_constant_sum<Float16>(DType::kFloat16, n, layout, float_eps);
      check_constant_sum<BFloat16>(DType::kBFloat16, n, layout, float_eps);
    }
  }
  std::puts("kernels: ok");
}
