// Batch normalization with a capped activation, in four steps: what their kernels are given and compiled for, and the
// numbers of a channel.
#pragma once

#include <cmath>

#include "cuda/cap_arrays.cuh"
#include "cuda/routing.cuh"

namespace dreluop::cuda {

// Forward, in training: the moments of x, then y. Backward: sums of gradients, then the gradients.
enum class Step : uint8_t { kMoments, kActivation, kGradientSums, kGradients };

// A value per channel, of any dtype.
struct ChannelArray {
  void* data;
  DType dtype;
  int64_t stride;

  DRELUOP_DEVICE double at(int64_t c) const { return read_number<double>(data, dtype, c * stride); }
  DRELUOP_DEVICE double at_or(int64_t c, double absent) const { return data == nullptr ? absent : at(c); }
  DRELUOP_DEVICE void set(int64_t c, double value) const {
    if (data != nullptr) write_number(data, dtype, c * stride, value);
  }
};

// From the partial sums of blocks to the totals of a channel.
struct ChannelSums {
  int64_t cap_tiles;   // of channels that are finished together
  int64_t cap_blocks;  // that share a channel
  unsigned* counters;  // one per tile, then one of finished tiles
  void* partials;
  double* totals;  // a row of them per sum
};

// What does not depend on how the operands lie.
struct BatchNormArguments {
  uint8_t* mask;
  ChannelArray weight, bias, cap, mean, var, dweight, dbias, dcap;  // data is null where absent, or not wanted
  double eps;
  bool trains, shared_cap, has_residual, wants_x, wants_residual;
  ChannelSums sums;
  void* slopes;  // slope and offset of each channel, in the type that x is computed in
};

template <Access kAccess>
struct BatchNormParameters : BatchNormArguments {
  Operands<kAccess> operands;  // x, y, residual; or x, grad, dx, dresidual
  int64_t numel;
  CapLayout layout;
  CapMap map;
  int64_t median[3];  // elements of the first channel, of whose values the median is near the mean
  RowPlan rows;
  RunIndex runs;  // of a vector (packed), or of a segment
  int head;
  ColumnPlan columns;
};

enum BatchNormOperand : int { kX, kY, kResidual, kGrad = kY, kDx = kResidual, kDResidual };

template <class DTypeTraits, Access kAccess, Step kStepOfPass, bool kPackedRows = false>
struct BatchNormTraits : KernelTraits<DTypeTraits, kAccess> {
  using Base = KernelTraits<DTypeTraits, kAccess>;
  static constexpr bool kGeneral = kAccess == Access::kGeneral;
  using SumType = std::conditional_t<kGeneral, double, typename Base::Real>;
  static constexpr Step kStep = kStepOfPass;
  static constexpr bool kPacked = kPackedRows;
  static constexpr int kSums = kStep == Step::kMoments ? 2 : kStep == Step::kGradientSums ? 3 : 0;
  static constexpr int kSumSlots = kSums > 0 ? kSums : 1;
  // The second step begins with what the first has read last, some of which is still in a cache.
  static constexpr bool kFromTheEnd = kSums == 0;
  using Parameters = BatchNormParameters<kAccess>;
};

// t = (x - mean) * scale + shift; dx = u * scale + ((x - mean) * slope + offset). Of the moments, mean is the origin
// that they are taken about.
template <class Traits>
struct Channel {
  typename Traits::Real mean, scale, shift, slope, offset;
  typename Traits::T cap;
};

// Sums are of x minus an origin near the mean: no digits are lost where the mean is large, and none at all where x is
// constant. The median of three elements is no outlier, which would cost the digits of all others.
template <class Traits>
DRELUOP_DEVICE typename Traits::Real origin_of(const typename Traits::Parameters& p, int64_t c) {
  typename Traits::Real of[3];
#pragma unroll
  for (int k = 0; k < 3; ++k)
    of[k] = Traits::upcast(p.operands.template at<Traits>(kX, p.median[k] + c * p.layout.inner));
  const auto median = max(min(of[0], of[1]), min(max(of[0], of[1]), of[2]));
  return median - median == 0 ? median : 0;
}

// Mean and variance as they are stored, so that backward finds the same bits.
template <class Traits>
DRELUOP_DEVICE double inverse_deviation(const typename Traits::Parameters& p, int64_t c) {
  return 1 / sqrt(static_cast<double>(static_cast<typename Traits::Real>(p.var.at(c))) + p.eps);
}

template <class Traits>
DRELUOP_DEVICE Channel<Traits> channel_of(const typename Traits::Parameters& p, int64_t c) {
  using Real = typename Traits::Real;
  Channel<Traits> channel{};
  if constexpr (Traits::kStep == Step::kMoments) {
    channel.mean = origin_of<Traits>(p, c);
  } else {
    channel.mean = static_cast<Real>(p.mean.at(c));
    channel.scale = static_cast<Real>(p.weight.at_or(c, 1) * inverse_deviation<Traits>(p, c));
    channel.shift = static_cast<Real>(p.bias.at_or(c, 0));
    channel.cap = Traits::Number::round(p.cap.at(c));
    if (Traits::kStep == Step::kGradients && p.trains && p.wants_x) {
      const auto* slopes = static_cast<const Real*>(p.slopes);
      channel.slope = slopes[c];
      channel.offset = slopes[p.layout.caps + c];
    }
  }
  return channel;
}

// Of `count` blocks, vectors or segments, the kth that a step takes.
template <class Traits>
DRELUOP_DEVICE int64_t in_turn(int64_t k, int64_t count) {
  return Traits::kFromTheEnd ? count - 1 - k : k;
}

// Those of the elements of a vector.
template <class Traits>
struct Numbers {
  using Real = typename Traits::Real;
  Real mean[Traits::kVec], scale[Traits::kVec], shift[Traits::kVec], slope[Traits::kVec], offset[Traits::kVec];
  typename Traits::Values cap;

  DRELUOP_DEVICE void set(int e, const Channel<Traits>& channel) {
    mean[e] = channel.mean;
    scale[e] = channel.scale;
    shift[e] = channel.shift;
    slope[e] = channel.slope;
    offset[e] = channel.offset;
    cap.v[e] = channel.cap;
  }
};

// Channels [first, first + count) in shared memory, each found by one thread: a square root and a quotient of doubles
// take long.
template <class Traits>
DRELUOP_DEVICE const Channel<Traits>* shared_channels(const typename Traits::Parameters& p, int64_t first,
                                                      int64_t count) {
  auto* channels = reinterpret_cast<Channel<Traits>*>(shared_memory());
#pragma unroll 1
  for (int64_t c = threadIdx.x; c < count; c += blockDim.x) channels[c] = channel_of<Traits>(p, first + c);
  __syncthreads();
  return channels;
}

}  // namespace dreluop::cuda
