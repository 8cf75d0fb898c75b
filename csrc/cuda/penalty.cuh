// Sums of squares of caps.
#pragma once

#include "cuda/cap_arrays.cuh"
#include "cuda/sums.cuh"

namespace dreluop::cuda {

// Sums one value per block, and lets the last block finish. Partials: one per block; zeroed counter.
DRELUOP_DEVICE bool reduce_across_blocks(Sum<double> sum, int64_t block, int64_t blocks, Sum<double>* partials,
                                         unsigned* counter, Sum<double>* total) {
  unsigned* ticket = reinterpret_cast<unsigned*>(shared_memory());
  auto* scratch = reinterpret_cast<Sum<double>*>(shared_memory() + 16);
#pragma unroll 1
  for (bool alone = blocks == 1;; alone = true) {
    sum = block_sum(sum, scratch);
    if (alone) break;
    if (threadIdx.x == 0) partials[block] = sum;
    if (!is_last_block(counter, static_cast<unsigned>(blocks), ticket)) return false;
    sum = Sum<double>();
    for (int64_t b = threadIdx.x; b < blocks; b += blockDim.x) sum.add(read_partial(partials + b));
  }
  *total = sum;
  return threadIdx.x == 0;
}

// The penalty of one list of caps, by the first blocks of a launch.
struct Penalty {
  CapIndex index;
  CapArray cap;
  int64_t count;
  int64_t blocks;  // 0: no penalty is wanted
  double balancer;
  Scalar result;
  Sum<double>* partials;
  unsigned* counter;

  DRELUOP_DEVICE void run(int64_t block) const {
    Sum<double> sum;
    for (int64_t c = block * blockDim.x + threadIdx.x; c < count; c += blocks * blockDim.x) {
      const double m = read_number<double>(cap.data, cap.dtype, offset_of(index, cap, c));
      sum.add(m * m);
    }
    Sum<double> total;
    if (reduce_across_blocks(sum, block, blocks, partials, counter, &total))
      write_number(result.data, result.dtype, 0, balancer * total.total());
  }
};

}  // namespace dreluop::cuda
