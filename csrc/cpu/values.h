// Values given per cap, of any dtype and at any strides: caps, biases, widths, gradients; and single numbers.
#pragma once

#include <memory>

#include "cpu/kernels.h"
#include "cpu/primitives.h"
#include "cpu/tensor_view.h"
#include "dreluop/plan.h"

namespace dreluop::cpu {

// Calls f(i, value) for the first n values of a tensor, as double.
template <class F>
void for_each_value(DType dtype, const TensorView& from, int64_t n, const F& f) {
  with_dtype_traits(dtype, [&](auto traits) {
    using Traits = decltype(traits);
    typename Traits::Storage buffer[kBlock];
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t length = std::min(kBlock, n - begin);
      const auto* values = from.read(begin, length, buffer);
      for (int64_t i = 0; i < length; ++i) f(begin + i, Traits::upcast(values[i]));
    }
  });
}

// Rounds value_of(i) to the first n elements of a tensor.
template <class F>
void write_values(DType dtype, const TensorView& to, int64_t n, const F& value_of) {
  with_dtype_traits(dtype, [&](auto traits) {
    using Traits = decltype(traits);
    typename Traits::Storage buffer[kBlock];
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t length = std::min(kBlock, n - begin);
      auto* values = to.target(begin, length, buffer);
      for (int64_t i = 0; i < length; ++i) values[i] = Traits::round(value_of(begin + i));
      to.write(begin, length, values, buffer);
    }
  });
}

constexpr int64_t kOne = 1;

inline double load(const Scalar& number) {
  double result = 0;
  for_each_value(number.dtype, TensorView(number.data, 1, &kOne, &kOne), 1, [&](int64_t, double v) { result = v; });
  return result;
}

inline void store(const Scalar& number, double value) {
  write_values(number.dtype, TensorView(number.data, 1, &kOne, &kOne), 1, [=](int64_t) { return value; });
}

inline double sum_of_squares(DType dtype, const TensorView& caps, int64_t n) {
  double sum = 0, error = 0;
  for_each_value(dtype, caps, n, [&](int64_t, double m) { sum = two_sum(sum, m * m, &error); });
  return with_error(sum, error);
}

// A stretch of elements [i, i + n) in one row of the plan: with one cap (kRuns), or a column each (kColumns).
struct Stretch {
  int64_t i, n, cap, column;
};

// One value per cap rounded to the dtype of Traits, laid out so that a stretch finds its values without arithmetic: the
// values themselves for kRuns, a whole row of them for kColumns. Borrowed where they lie so already; zero where absent.
template <class Traits>
class CapValues {
  using T = typename Traits::Storage;

 public:
  CapValues(const Plan& plan, const Activation& x, const PerCap& given)
      : shared_(plan.variant == Variant::kRuns || given.data == nullptr), present_(given.data != nullptr) {
    if (!present_) return;
    const CapLayout& layout = x.layout;
    const TensorView view(x, given);
    values_ = static_cast<const T*>(given.data);
    if (given.dtype != Traits::kDType || !view.is_linear()) {
      rounded_.reset(new T[std::max<int64_t>(1, layout.caps)]);
      for_each_value(given.dtype, view, layout.caps, [&](int64_t i, double v) { rounded_[i] = Traits::round(v); });
      values_ = rounded_.get();
    }
    if (shared_ || (layout.inner == 1 && plan.row <= layout.caps)) return;
    expanded_.reset(new T[plan.row]);
    T* to = expanded_.get();
    T* const end = to + plan.row;
    while (to < end)
      for (int64_t c = 0; c < layout.caps && to < end; ++c)
        for (int64_t i = 0; i < layout.inner && to < end; ++i) *to++ = values_[c];
    values_ = expanded_.get();
  }
  CapValues(const CapValues&) = delete;

  Values<T> at(const Stretch& s) const {
    if (!present_) return {&zero_, true};
    return {values_ + (shared_ ? s.cap : s.column), shared_};
  }
  // As regions are decided with them.
  Values<T> for_regions(const Stretch& s, Zeroed zeroed) const {
    return zeroed & kZeroAbove ? Values<T>{&nan_, true} : at(s);
  }

 private:
  const bool shared_, present_;
  const T zero_ = Traits::zero(), nan_ = Traits::nan();
  const T* values_ = nullptr;
  std::unique_ptr<T[]> rounded_, expanded_;
};

}  // namespace dreluop::cpu
