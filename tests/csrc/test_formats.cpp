// Storage formats against the compiler's own half and the definition of rounding; the scalar rule on special values.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "dreluop/semantics.h"

using namespace dreluop;

namespace {

template <class Traits>
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

template <class Traits>
void test_all_bit_patterns(int exponent_bits) {
  std::vector<uint16_t> finite;
  for (uint32_t b = 0; b < 0x10000; ++b) {
    const auto bits = static_cast<uint16_t>(b);
    const double expected = value_of<Traits>(bits, exponent_bits);
    const double got = Traits::upcast(bits);
    CHECK(Traits::is_nan(bits) == std::isnan(expected), std::to_string(b));
    if (std::isnan(expected)) {
      CHECK(std::isnan(got), std::to_string(b));
      CHECK(Traits::is_nan(Traits::round(got)), std::to_string(b));
      continue;
    }
    CHECK(got == expected && std::signbit(got) == std::signbit(expected), std::to_string(b));
    CHECK(Traits::round(expected) == bits, std::to_string(b));
    CHECK(Traits::positive(bits) == (expected > 0), std::to_string(b));
    if (std::isfinite(expected)) finite.push_back(bits);
  }
  // Between two neighbors the nearer wins, and the even one at the middle.
  for (uint16_t b = 0; Traits::upcast(b + 1) < std::numeric_limits<double>::infinity(); ++b) {
    const double low = Traits::upcast(b), high = Traits::upcast(b + 1), middle = (low + high) / 2;
    const float below = std::nextafterf(static_cast<float>(middle), 0.0f);
    const float above = std::nextafterf(static_cast<float>(middle), std::numeric_limits<float>::infinity());
    CHECK(Traits::from_float(static_cast<float>(middle)) == b + (b & 1), std::to_string(b));
    CHECK(Traits::from_float(below) == b, std::to_string(b));
    CHECK(Traits::from_float(above) == b + 1, std::to_string(b));
    CHECK(Traits::from_float(-above) == (0x8000 | (b + 1)), std::to_string(b));
  }
  std::mt19937 random(0);
  for (int i = 0; i < 1000000; ++i) {
    const uint16_t a = finite[random() % finite.size()], b = finite[random() % finite.size()];
    const double x = Traits::upcast(a), m = Traits::upcast(b);
    if (x > 0 || m > 0) CHECK(Traits::less(a, b) == (x < m), std::to_string(a) + " " + std::to_string(b));
  }
}

template <class Traits>
void test_rule() {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  const double values[] = {nan, -inf, -2, -1, -0.0, 0.0, 0.5, 1, 2, inf};
  for (const double xd : values)
    for (const double md : values) {
      const auto x = Traits::round(xd), m = Traits::round(md);
      const auto y = capped_value<Traits>(x, m);
      const std::string which = std::to_string(xd) + " capped at " + std::to_string(md);
      if (std::isnan(xd) || std::isnan(md)) {
        CHECK(Traits::is_nan(y), which);
        CHECK(region_of<Traits>(y, m) == kInside, which);
        continue;
      }
      const double expected = md <= 0 || xd <= 0 ? 0.0 : xd < md ? xd : md;
      CHECK(Traits::upcast(y) == expected && !std::signbit(Traits::upcast(y)), which);
      const int region = md <= 0 || xd <= 0 ? kOff : xd < md ? kInside : kCapped;
      CHECK(region_of<Traits>(y, m) == region, which);
    }
}

// The same with what is above the cap, or NaN, made zero. Regions are those under `region_cap`.
template <class Traits>
void test_zeroed() {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  const double values[] = {nan, -inf, -2, -1, -0.0, 0.0, 0.5, 1, 2, inf};
  for (const Zeroed zeroed : {kZeroNothing, kZeroAbove, kZeroNaN, kZeroBoth})
    for (const double xd : values)
      for (const double md : values) {
        const auto x = Traits::round(xd), m = Traits::round(md);
        const auto y = capped_value<Traits>(x, m, zeroed);
        const std::string which =
            std::to_string(xd) + " capped at " + std::to_string(md) + ", zeroed " + std::to_string(zeroed);
        const uint8_t region = region_of<Traits>(y, region_cap<Traits>(m, zeroed));
        if (std::isnan(xd) || std::isnan(md)) {
          CHECK(zeroed & kZeroNaN ? Traits::equal(y, Traits::zero()) : Traits::is_nan(y), which);
          CHECK(region == (zeroed & kZeroNaN ? kOff : kInside), which);
          continue;
        }
        const bool on = xd > 0 && md > 0, cut = zeroed & kZeroAbove ? xd > md : false;
        const double expected = on && !cut ? std::min(xd, md) : 0.0;
        CHECK(Traits::upcast(y) == expected && !std::signbit(Traits::upcast(y)), which);
        const bool at_cap = !(zeroed & kZeroAbove) && xd >= md;
        CHECK(region == (expected == 0 ? kOff : at_cap ? kCapped : kInside), which);
      }
}

// What a GPU does with two numbers at once to zero those above their caps.
template <class Traits>
void test_cut() {
  std::mt19937 random(0);
  for (int i = 0; i < 2000000; ++i) {
    const uint32_t word = random(), near = random() % 4;
    const auto x = static_cast<uint16_t>(word), m = static_cast<uint16_t>(near == 0   ? x
                                                                          : near == 1 ? x + 1
                                                                                      : word >> 16);
    const uint32_t other = random() & 0xffff, y = Traits::minimum(x, m);
    for (const int shift : {0, 16}) {
      const uint32_t cut = masks_if_cut<Traits>(x << shift | other << (16 - shift), y << shift | other << (16 - shift));
      const uint16_t mask = static_cast<uint16_t>(cut >> shift);
      const auto got = Traits::positive_part(static_cast<uint16_t>(y & ~mask));
      const auto expected = capped_value<Traits>(x, m, kZeroAbove);
      CHECK((mask == 0 || mask == 0xffff) && (got == expected || (Traits::is_nan(got) && Traits::is_nan(expected))),
            std::to_string(x) + " capped at " + std::to_string(m));
      CHECK(static_cast<uint16_t>(cut >> (16 - shift)) == 0);
    }
  }
}

uint32_t mask_of(uint32_t signs) { return (signs & 0x8000 ? 0xffffu : 0) | (signs >> 31 ? 0xffff0000u : 0); }

// Eight packed regions, from all values of the two in question and what is around them.
void test_masks_of_packed_regions() {
  for (uint32_t region_bits = 0; region_bits < 0x10000; ++region_bits)
    for (int w = 0; w < 4; ++w) {
      const auto bit = [&](int e, Region region) { return (region_bits >> (2 * (2 * w + e)) & region) != 0; };
      const auto mask = [&](Region region) {
        return (bit(0, region) ? 0xffffu : 0) | (bit(1, region) ? 0xffff0000u : 0);
      };
      const Regions masks = region_masks_of_packed_pair(region_bits, w);
      CHECK(masks.inside == mask(kInside) && masks.capped == mask(kCapped), std::to_string(region_bits));
    }
}

// The packed rule, of every pair of an output and a cap in either half of a word.
template <class Traits>
void test_regions_of_two() {
  std::mt19937 random(0);
  const auto check = [&](uint32_t x, uint32_t m) {
    const uint32_t y = capped_value<Traits>(static_cast<uint16_t>(x), static_cast<uint16_t>(m));
    const uint32_t other_y = random() % (Traits::kInfinityBits + 3), other_m = random() & 0xffff;
    for (const int shift : {0, 16}) {
      const Regions regions =
          regions_of_two<Traits>(y << shift | other_y << (16 - shift), m << shift | other_m << (16 - shift));
      const uint32_t of_y =
          (regions.inside >> (15 + shift) & 1) * kInside + (regions.capped >> (15 + shift) & 1) * kCapped;
      CHECK(of_y == region_of<Traits>(static_cast<uint16_t>(y), static_cast<uint16_t>(m)),
            std::to_string(y) + " " + std::to_string(m));
      CHECK(((regions.inside | regions.capped) & 0x7fff7fff) == 0);
      const Regions masks =
          region_masks_of_two<Traits>(y << shift | other_y << (16 - shift), m << shift | other_m << (16 - shift));
      CHECK(masks.inside == mask_of(regions.inside) && masks.capped == mask_of(regions.capped));
    }
  };
  for (uint32_t m = 0; m < 0x10000; ++m) {
    // A cap itself, its neighbors, the ends, and any output.
    const uint32_t near[] = {m & 0x7fff, (m + 1) & 0x7fff,      (m - 1) & 0x7fff, 0,
                             1,          Traits::kInfinityBits, 0x7fff,           0xffff};
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
  test_zeroed<Float32>();
  test_zeroed<Float64>();
  test_zeroed<Float16>();
  test_zeroed<BFloat16>();
  test_cut<Float16>();
  test_cut<BFloat16>();
  test_regions_of_two<Float16>();
  test_regions_of_two<BFloat16>();
  test_masks_of_packed_regions();
  std::puts("formats: ok");
}
