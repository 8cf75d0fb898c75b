// Values given per cap: of any dtype, at any strides.
#pragma once

#include "cuda/access_general.cuh"
#include "cuda/caps.cuh"

namespace dreluop::cuda {

constexpr int kCapDims = 8;

struct CapIndex {
  int rank;
  FastDivmod sizes[kCapDims];
};

struct CapArray {
  void* data;
  DType dtype;
  int64_t strides[kCapDims];
};

DRELUOP_DEVICE int64_t offset_of(const CapIndex& index, const CapArray& array, int64_t cap) {
  return strided_offset(static_cast<uint64_t>(cap), index.rank, index.sizes, array.strides);
}

template <class Real>
DRELUOP_DEVICE Real read_number(const void* data, DType dtype, int64_t offset) {
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<Real>(static_cast<const float*>(data)[offset]);
    case DType::kFloat64:
      return static_cast<Real>(static_cast<const double*>(data)[offset]);
    case DType::kFloat16:
      return static_cast<Real>(Float16::to_float(static_cast<const uint16_t*>(data)[offset]));
    default:
      return static_cast<Real>(BFloat16::to_float(static_cast<const uint16_t*>(data)[offset]));
  }
}

DRELUOP_DEVICE void write_number(void* data, DType dtype, int64_t offset, double value) {
  switch (dtype) {
    case DType::kFloat32:
      static_cast<float*>(data)[offset] = Float32::round(value);
      break;
    case DType::kFloat64:
      static_cast<double*>(data)[offset] = value;
      break;
    case DType::kFloat16:
      static_cast<uint16_t*>(data)[offset] = Float16::round(value);
      break;
    default:
      static_cast<uint16_t*>(data)[offset] = BFloat16::round(value);
  }
}

template <>
struct CapSource<Access::kGeneral> {
  CapIndex index;
  CapArray array;
  const void* data;

  template <class Traits>
  DRELUOP_DEVICE typename Traits::Real number(int64_t cap) const {
    return read_number<typename Traits::Real>(data, array.dtype, offset_of(index, array, cap));
  }
};

}  // namespace dreluop::cuda
