// Storage formats against the compiler's own half and the definition of rounding; the scalar rule on special values.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "dreluop/semantics.h"

using namespace dreluop;

namespace {

template <class Format>
double value_of(uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1)
    return mantissa ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

template <class Format>
void test_all_bit_patterns(int exponent_bits) {
  std::vector<uint16_t> finite;
  for (uint32_t b = 0; b < 0x10000; ++b) {
    const auto bits = static_cast<uint16_t>(b);
    const double expected = value_of<Format>(bits, exponent_bits);
    const double got = Format::widen(bits);
    CHECK(Format::is_nan(bits) == std::isnan(expected), std::to_string(b));
    if (std::isnan(expected)) {
      CHECK(std::isnan(got), std::to_string(b));
      CHECK(Format::is_nan(Format::round(got)), std::to_string(b));
      continue;
    }
    CHECK(got == expected && std::signbit(got) == std::signbit(expected), std::to_string(b));
    CHECK(Format::round(expected) == bits, std::to_string(b));
    CHECK(Format::positive(bits) == (expected > 0), std::to_string(b));
    if (std::isfinite(expected)) finite.push_back(bits);
  }
  // Between two neighbours the nearer wins, and the even one at the middle.
  for (uint16_t b = 0; Format::widen(b + 1) < std::numeric_limits<double>::infinity(); ++b) {
    const double low = Format::widen(b), high = Format::widen(b + 1), middle = (low + high) / 2;
    const float below = std::nextafterf(static_cast<float>(middle), 0.0f);
    const float above = std::nextafterf(static_cast<float>(middle), std::numeric_limits<float>::infinity());
    CHECK(Format::from_float(static_cast<float>(middle)) == b + (b & 1), std::to_string(b));
    CHECK(Format::from_float(below) == b, std::to_string(b));
    CHECK(Format::from_float(above) == b + 1, std::to_string(b));
    CHECK(Format::from_float(-above) == (0x8000 | (b + 1)), std::to_string(b));
  }
  std::mt19937 random(0);
  for (int i = 0; i < 1000000; ++i) {
    const uint16_t a = finite[random() % finite.size()], b = finite[random() % finite.size()];
    const double x = Format::widen(a), m = Format::widen(b);
    if (x > 0 || m > 0) CHECK(Format::less(a, b) == (x < m), std::to_string(a) + " " + std::to_string(b));
  }
}

template <class Format>
void test_rule() {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  const double values[] = {nan, -inf, -2, -1, -0.0, 0.0, 0.5, 1, 2, inf};
  for (const double xd : values)
    for (const double md : values) {
      const auto x = Format::round(xd), m = Format::round(md);
      const auto y = capped_value<Format>(x, m);
      const std::string which = std::to_string(xd) + " capped at " + std::to_string(md);
      if (std::isnan(xd) || std::isnan(md)) {
        CHECK(Format::is_nan(y), which);
        CHECK(region_of<Format>(y, m) == kInside, which);
        continue;
      }
      const double expected = md <= 0 || xd <= 0 ? 0.0 : xd < md ? xd : md;
      CHECK(Format::widen(y) == expected && !std::signbit(Format::widen(y)), which);
      const int region = md <= 0 || xd <= 0 ? kOff : xd < md ? kInside : kCapped;
      CHECK(region_of<Format>(y, m) == region, which);
    }
}

uint32_t mask_of(uint32_t signs) { return (signs & 0x8000 ? 0xffffu : 0) | (signs >> 31 ? 0xffff0000u : 0); }

// Of eight codes, from all values of the two in question and what is around them.
void test_masks_of_codes() {
  for (uint32_t codes = 0; codes < 0x10000; ++codes)
    for (int w = 0; w < 4; ++w) {
      const auto bit = [&](int e, Region region) { return (codes >> (2 * (2 * w + e)) & region) != 0; };
      const auto mask = [&](Region region) {
        return (bit(0, region) ? 0xffffu : 0) | (bit(1, region) ? 0xffff0000u : 0);
      };
      const Regions masks = region_masks_of_two_codes(codes, w);
      CHECK(masks.inside == mask(kInside) && masks.capped == mask(kCapped), std::to_string(codes));
    }
}

// The packed rule, of every pair of an output and a cap in either half of a word.
template <class Format>
void test_regions_of_two() {
  std::mt19937 random(0);
  const auto check = [&](uint32_t x, uint32_t m) {
    const uint32_t y = capped_value<Format>(static_cast<uint16_t>(x), static_cast<uint16_t>(m));
    const uint32_t other_y = random() % (Format::kInfinityBits + 3), other_m = random() & 0xffff;
    for (const int shift : {0, 16}) {
      const Regions regions =
          regions_of_two<Format>(y << shift | other_y << (16 - shift), m << shift | other_m << (16 - shift));
      const uint32_t of_y =
          (regions.inside >> (15 + shift) & 1) * kInside + (regions.capped >> (15 + shift) & 1) * kCapped;
      CHECK(of_y == region_of<Format>(static_cast<uint16_t>(y), static_cast<uint16_t>(m)),
            std::to_string(y) + " " + std::to_string(m));
      CHECK(((regions.inside | regions.capped) & 0x7fff7fff) == 0);
      const Regions masks =
          region_masks_of_two<Format>(y << shift | other_y << (16 - shift), m << shift | other_m << (16 - shift));
      CHECK(masks.inside == mask_of(regions.inside) && masks.capped == mask_of(regions.capped));
    }
  };
  for (uint32_t m = 0; m < 0x10000; ++m) {
    // A cap itself, its neighbours, the ends, and any output.
    const uint32_t near[] = {m & 0x7fff, (m + 1) & 0x7fff,      (m - 1) & 0x7fff, 0,
                             1,          Format::kInfinityBits, 0x7fff,           0xffff};
    for (const uint32_t x : near) check(x, m);
    for (int k = 0; k < 8; ++k) check(random() & 0x7fff, m);
  }
}

}  // namespace

int main() {
  test_all_bit_patterns<Float16>(5);
  test_all_bit_patterns<BFloat16>(8);
  CHECK(Float16::from_float(65519.99f) == 0x7bff);
  CHECK(Float16::from_float(65520.0f) == 0x7c00);
  test_rule<Float32>();
  test_rule<Float64>();
  test_rule<Float16>();
  test_rule<BFloat16>();
  test_regions_of_two<Float16>();
  test_regions_of_two<BFloat16>();
  test_masks_of_codes();
  std::puts("formats: ok");
}
