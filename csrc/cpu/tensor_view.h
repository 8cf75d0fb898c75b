// A tensor as a kernel sees it: elements in traversal order, read and written through short contiguous stretches.
#pragma once

#include <cstdint>
#include <cstring>

#include "dreluop/passes.h"

namespace dreluop::cpu {

class TensorView {
 public:
  TensorView() = default;
  // Listed from the outermost dimension to the innermost.
  TensorView(void* data, int rank, const int64_t* sizes, const int64_t* strides) : data_(data) {
    for (int d = 0; d < rank && data != nullptr; ++d) {
      if (sizes[d] == 1) continue;
      if (count_ > 0 && dims_[count_ - 1].stride == strides[d] * sizes[d]) {
        dims_[count_ - 1] = {dims_[count_ - 1].size * sizes[d], strides[d]};
      } else {
        dims_[count_++] = {sizes[d], strides[d]};
      }
    }
    if (count_ == 0) dims_[count_++] = {1, 1};
    linear_ = count_ == 1 && dims_[0].stride == 1;
  }
  TensorView(const Activation& x, const Operand& given) : TensorView(given.data, x.rank, x.sizes, given.strides) {}
  TensorView(const Activation& x, const PerCap& given)
      : TensorView(given.data, x.cap_rank, x.cap_sizes, given.strides) {}
  explicit TensorView(const CapTensor& given) : TensorView(given.data, given.rank, given.sizes, given.strides) {}

  bool present() const { return data_ != nullptr; }
  // Elements lie one after another in traversal order.
  bool is_linear() const { return linear_; }
  void* data() const { return data_; }

  // Elements [begin, begin + n) in traversal order: where they lie, if contiguous, else copied to `buffer`.
  template <class T>
  const T* read(int64_t begin, int64_t n, T* buffer) const {
    if (const T* direct = contiguous<T>(begin, n)) return direct;
    visit(begin, n, [&](int64_t at, const Dim& run, int64_t offset, int64_t length) {
      const T* from = static_cast<const T*>(data_) + offset;
      for (int64_t i = 0; i < length; ++i) buffer[at + i] = from[i * run.stride];
    });
    return buffer;
  }

  // Where elements [begin, begin + n) are to be computed: in place if contiguous, else in `buffer`, then `write` it.
  template <class T>
  T* target(int64_t begin, int64_t n, T* buffer) const {
    T* direct = contiguous<T>(begin, n);
    return direct ? direct : buffer;
  }

  template <class T>
  void write(int64_t begin, int64_t n, const T* from, const T* buffer) const {
    if (from != buffer) return;
    visit(begin, n, [&](int64_t at, const Dim& run, int64_t offset, int64_t length) {
      T* to = static_cast<T*>(data_) + offset;
      for (int64_t i = 0; i < length; ++i) to[i * run.stride] = buffer[at + i];
    });
  }

 private:
  struct Dim {
    int64_t size, stride;
  };

  template <class T>
  T* contiguous(int64_t begin, int64_t n) const {
    if (linear_) return static_cast<T*>(data_) + begin;
    const Dim& run = dims_[count_ - 1];
    if (run.stride != 1 || begin % run.size + n > run.size) return nullptr;
    return static_cast<T*>(data_) + offset_of(begin);
  }

  int64_t offset_of(int64_t index) const {
    int64_t offset = 0;
    for (size_t d = count_; d-- > 0;) {
      offset += index % dims_[d].size * dims_[d].stride;
      index /= dims_[d].size;
    }
    return offset;
  }

  // Calls f(position in the range, innermost dimension, offset, length) for every stretch of the innermost dimension.
  template <class F>
  void visit(int64_t begin, int64_t n, const F& f) const {
    const Dim& run = dims_[count_ - 1];
    for (int64_t at = 0; at < n;) {
      const int64_t index = begin + at;
      const int64_t length = std::min(n - at, run.size - index % run.size);
      f(at, run, offset_of(index), length);
      at += length;
    }
  }

  void* data_ = nullptr;
  Dim dims_[kMaxDims];
  size_t count_ = 0;
  bool linear_ = true;
};

}  // namespace dreluop::cpu
