// DimVector, strides or an order of dimensions: a short list without memory of its own, as every call makes a dozen of
// them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace dreluop {

// torch's own limit.
constexpr size_t kMaxDims = 64;

class DimVector {
 public:
  DimVector() = default;
  explicit DimVector(size_t count, int64_t value = 0) { resize(count, value); }
  DimVector(std::initializer_list<int64_t> values) : DimVector(values.begin(), values.end()) {}
  DimVector(const std::vector<int64_t>& values) : DimVector(values.data(), values.data() + values.size()) {}
  DimVector(const int64_t* first, const int64_t* last) : count_(checked(static_cast<size_t>(last - first))) {
    std::copy(first, last, values_);
  }
  DimVector(const DimVector& other) : DimVector(other.begin(), other.end()) {}
  DimVector& operator=(const DimVector& other) {
    count_ = other.count_;
    std::copy_n(other.values_, count_, values_);
    return *this;
  }

  void resize(size_t count, int64_t value = 0) {
    checked(count);
    if (count > count_) std::fill(values_ + count_, values_ + count, value);
    count_ = count;
  }
  void push_back(int64_t value) {
    checked(count_ + 1);
    values_[count_++] = value;
  }
  void clear() { count_ = 0; }

  size_t size() const { return count_; }
  bool empty() const { return count_ == 0; }
  int64_t* begin() { return values_; }
  int64_t* end() { return values_ + count_; }
  const int64_t* begin() const { return values_; }
  const int64_t* end() const { return values_ + count_; }
  const int64_t* data() const { return values_; }
  int64_t& operator[](size_t i) { return values_[i]; }
  int64_t operator[](size_t i) const { return values_[i]; }
  int64_t front() const { return values_[0]; }
  int64_t back() const { return values_[count_ - 1]; }

  friend bool operator==(const DimVector& a, const DimVector& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  }
  friend bool operator!=(const DimVector& a, const DimVector& b) { return !(a == b); }

 private:
  static size_t checked(size_t count) {
    if (count > kMaxDims)
      throw std::invalid_argument("got " + std::to_string(count) + " dimensions; expected at most " +
                                  std::to_string(kMaxDims));
    return count;
  }

  size_t count_ = 0;
  int64_t values_[kMaxDims];
};

}  // namespace dreluop
