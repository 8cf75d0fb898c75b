// From the sums of blocks to mean and variance, or to the gradients of parameters: the last block of a tile of channels
// adds them up.
#pragma once

#include "cuda/batch_norm_steps.cuh"

namespace dreluop::cuda {

template <class Traits>
struct ChannelReduction {
  using Real = typename Traits::Real;
  using P = Partial<typename Traits::SumType>;
  static constexpr int kSums = Traits::kSums;

  const typename Traits::Parameters& p;

  DRELUOP_DEVICE double& total(int k, int64_t c) const { return p.sums.totals[k * p.layout.caps + c]; }
  DRELUOP_DEVICE P* partials(int k) const {
    return static_cast<P*>(p.sums.partials) + k * p.sums.cap_blocks * p.layout.caps;
  }

  // Called by a whole block for channels [first, first + local.count), as its `block`-th. fill(k) lays this block's
  // sums of kind k where `local`, in shared memory, says.
  template <class Fill>
  DRELUOP_DEVICE void run(const Terms<P>& local, int64_t tile, int64_t first, int64_t block, const Fill& fill) const {
    unsigned* ticket = reinterpret_cast<unsigned*>(shared_memory());
    const bool alone = p.sums.cap_blocks == 1;
#pragma unroll 1
    for (int k = 0; k < kSums; ++k) {
      __syncthreads();
      fill(k);
      __syncthreads();
      sum_each<true>(local, [&](uint32_t i, const P& sum) {
        if (alone)
          total(k, first + i) = total_of(sum);
        else
          partials(k)[block * p.layout.caps + first + i] = sum;
      });
    }
    if (!alone) {
      if (!is_last_block(&p.sums.counters[tile], static_cast<unsigned>(p.sums.cap_blocks), ticket)) return;
#pragma unroll 1
      for (int k = 0; k < kSums; ++k) {
        const Terms<P> terms{partials(k) + first, local.count, static_cast<uint32_t>(p.sums.cap_blocks), 0,
                             p.layout.caps};
        sum_each<false>(terms, [&](uint32_t i, const P& sum) { total(k, first + i) = total_of(sum); });
      }
    }
    __syncthreads();
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < local.count; i += blockDim.x) settle(first + i);
    if constexpr (Traits::kStep == Step::kGradientSums)
      if (p.shared_cap && p.dcap.data != nullptr) add_over_channels(ticket);
  }

 private:
  DRELUOP_DEVICE void settle(int64_t c) const {
    const double n = static_cast<double>(p.layout.outer * p.layout.inner);
    if constexpr (Traits::kStep == Step::kMoments) {
      const double mean = total(0, c) / n, var = total(1, c) / n - mean * mean;
      p.mean.set(c, static_cast<double>(origin_of<Traits>(p, c)) + mean);
      // A NaN stays.
      p.var.set(c, var < 0 ? 0 : var);
    } else {
      // In training, the mean of what reaches x, and its projection on x, are taken out.
      const double inverse = inverse_deviation<Traits>(p, c), scale = p.weight.at_or(c, 1) * inverse;
      const double inside = total(kInsideSum, c), projected = total(kProjection, c);
      p.dbias.set(c, inside);
      p.dweight.set(c, projected * inverse);
      if (!p.shared_cap) p.dcap.set(c, total(kCappedSum, c));
      auto* slopes = static_cast<Real*>(p.slopes);
      slopes[c] = static_cast<Real>(-scale * inverse * inverse * projected / n);
      slopes[p.layout.caps + c] = static_cast<Real>(-scale * inside / n);
    }
  }

  DRELUOP_DEVICE void add_over_channels(unsigned* ticket) const {
    if (!is_last_block(&p.sums.counters[p.sums.cap_tiles], static_cast<unsigned>(p.sums.cap_tiles), ticket)) return;
    const Terms<double> terms{&total(kCappedSum, 0), 1, static_cast<uint32_t>(p.layout.caps), 0, 1};
    sum_each<false>(terms, [&](uint32_t, double sum) { p.dcap.set(0, sum); });
  }
};

}  // namespace dreluop::cuda
