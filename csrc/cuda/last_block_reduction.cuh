// From the sums of blocks to the gradients of cap and bias: the last block of every tile of caps adds them up and
// writes.
#pragma once

#include "cuda/cap_arrays.cuh"
#include "cuda/sums.cuh"

namespace dreluop::cuda {

enum SumOf : int { kCapSum = 0, kBiasSum = 1 };

// Shared memory begins with the ticket that a block has drawn from the counter.
constexpr size_t kTicketBytes = 16;

template <class Real>
struct LastBlockReduction {
  using P = Partial<Real>;
  CapIndex index;
  CapArray cap, gradient[2];  // of the cap, of the bias; data is null where not wanted
  Scalar grad_penalty;
  double penalty_factor;  // times grad_penalty, times the cap
  int64_t caps;
  int64_t cap_tiles;   // of caps that are finished together
  int64_t cap_blocks;  // that share a cap
  unsigned* counters;
  P* partials[2];
  // One cap over all channels, if its gradient is wanted: the sums per channel, the counter of finished cap tiles. Else
  // null.
  P* channel_sums;
  unsigned* finished_cap_tiles;

  DRELUOP_DEVICE bool wants(int k) const { return gradient[k].data != nullptr; }

  // Called by a whole block for caps [first, first + local.count), as its `block`-th. fill(k) lays this block's sums of
  // kind k where `local`, in shared memory, says.
  template <int kSums, class Fill>
  DRELUOP_DEVICE void run(const Terms<P>& local, int64_t set, int64_t first, int64_t block, unsigned* ticket,
                          const Fill& fill) const {
    const bool alone = cap_blocks == 1;
#pragma unroll 1
    for (int k = 0; k < kSums; ++k) {
      __syncthreads();
      fill(k);
      __syncthreads();
      if (!wants(k)) continue;
      sum_each<true>(local, [&](uint32_t i, const P& sum) {
        if (alone)
          put_sum(k, first + i, sum);
        else
          partials[k][block * caps + first + i] = sum;
      });
    }
    if (!wants(kCapSum) && !wants(kBiasSum)) return;
    if (!alone && !is_last_block(&counters[set], static_cast<unsigned>(cap_blocks), ticket)) return;
    // Then what other blocks have left: the partial sums, the sums per channel. One loop, as its body is long.
#pragma unroll 1
    for (int k = alone ? kSums : 0; k <= kSums; ++k) {
      const bool over_channels = k == kSums;
      if (over_channels) {
        if (channel_sums == nullptr || !is_last_block(finished_cap_tiles, static_cast<unsigned>(cap_tiles), ticket))
          return;
      } else if (!wants(k)) {
        continue;
      }
      const Terms<P> terms =
          over_channels ? Terms<P>{channel_sums, 1, static_cast<uint32_t>(caps), 0, 1}
                        : Terms<P>{partials[k] + first, local.count, static_cast<uint32_t>(cap_blocks), 0, caps};
      sum_each<false>(terms, [&](uint32_t i, const P& sum) {
        if (over_channels)
          write_gradient(kCapSum, 0, sum);
        else
          put_sum(k, first + i, sum);
      });
    }
  }

 private:
  DRELUOP_DEVICE void put_sum(int k, int64_t c, const P& sum) const {
    if (k == kCapSum && channel_sums != nullptr)
      channel_sums[c] = sum;
    else
      write_gradient(k, c, sum);
  }

  DRELUOP_DEVICE void write_gradient(int k, int64_t c, const P& sum) const {
    double value = total_of(sum);
    if (k == kCapSum && grad_penalty.data != nullptr) {
      const double scale = penalty_factor * read_number<double>(grad_penalty.data, grad_penalty.dtype, 0);
      value += scale * read_number<double>(cap.data, cap.dtype, offset_of(index, cap, c));
    }
    write_number(gradient[k].data, gradient[k].dtype, offset_of(index, gradient[k], c), value);
  }
};

}  // namespace dreluop::cuda
