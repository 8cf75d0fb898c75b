// From the sums of blocks to the gradients of cap and bias: the last block of every set of caps adds them up and
// writes.
#pragma once

#include "cuda/caps.cuh"
#include "cuda/sums.cuh"

namespace dreluop::cuda {

enum SumOf : int { kCapSum = 0, kBiasSum = 1 };

// Shared memory begins with a slot for the counter that a block has drawn.
constexpr size_t kSlotBytes = 16;

template <class Real>
struct Finish {
  CapIndex index;
  CapArray cap, gradient[2];  // of the cap, of the bias; data is null where not wanted
  Scalar grad_penalty;
  double penalty_factor;  // times grad_penalty, times the cap
  int64_t caps;
  int64_t sets;        // of caps that are finished together
  int64_t cap_blocks;  // that share a cap
  unsigned* counters;
  Sum<Real>* partials[2];
  // One cap over all channels, if its gradient is wanted: the sums per channel, the counter of finished sets. Else
  // null.
  Sum<Real>* channel_sums;
  unsigned* finished_sets;

  DRELUOP_DEVICE bool wants(int k) const { return gradient[k].data != nullptr; }

  // Called by a whole block for caps [first, first + local.count), as its `block`-th. fill(k) lays this block's sums of
  // kind k where `local` says. One loop over all that is to be added up, as its body is long.
  template <int kSums, class Fill>
  DRELUOP_DEVICE void run(const Terms<Real>& local, int64_t set, int64_t first, int64_t block, unsigned* slot,
                          const Fill& fill) const {
    const bool alone = cap_blocks == 1;
#pragma unroll 1
    for (int step = 0; step <= 2 * kSums; ++step) {
      Terms<Real> terms = local;
      int k = step % kSums;
      bool is_gradient = true;
      Sum<Real>* to = nullptr;
      if (step < kSums) {
        __syncthreads();
        fill(k);
        __syncthreads();
        is_gradient = alone;
        to = partials[k] + block * caps + first;
      } else if (step < 2 * kSums) {
        if (alone) continue;
        if (step == kSums && !arrives_last(&counters[set], static_cast<unsigned>(cap_blocks), slot)) return;
        terms = {partials[k] + first, local.count, static_cast<uint32_t>(cap_blocks), 1, 1, 0, 1, caps};
      } else {
        if (channel_sums == nullptr || !arrives_last(finished_sets, static_cast<unsigned>(sets), slot)) return;
        terms = {channel_sums, 1, static_cast<uint32_t>(caps), 1, 1, 0, 0, 1};
        k = kCapSum;
      }
      if (!wants(k)) continue;
      if (step < 2 * kSums && is_gradient && k == kCapSum && channel_sums != nullptr) {
        is_gradient = false;
        to = channel_sums + first;
      }
      const int64_t offset = step < 2 * kSums ? first : 0;
      sum_each(terms, [&](uint32_t i, const Sum<Real>& sum) {
        if (is_gradient)
          write_gradient(k, offset + i, sum);
        else
          to[i] = sum;
      });
    }
  }

 private:
  DRELUOP_DEVICE void write_gradient(int k, int64_t c, const Sum<Real>& sum) const {
    double value = sum.total();
    if (k == kCapSum && grad_penalty.data != nullptr) {
      const double scale = penalty_factor * read_number<double>(grad_penalty.data, grad_penalty.dtype, 0);
      value += scale * read_number<double>(cap.data, cap.dtype, offset_of(index, cap, c));
    }
    write_number(gradient[k].data, gradient[k].dtype, offset_of(index, gradient[k], c), value);
  }
};

}  // namespace dreluop::cuda
