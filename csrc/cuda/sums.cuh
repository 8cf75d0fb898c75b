// Sums whose rounding errors are kept, and their reduction over a block in a fixed order.
#pragma once

#include "cuda/runtime.cuh"
#include "dreluop/cuda_plan.h"

namespace dreluop::cuda {

template <class Real>
struct Sum {
  Real value = 0;
  Real error = 0;  // what rounding took from the value

  DRELUOP_DEVICE void add(Real term) {
    const Real sum = value + term;
    const Real back = sum - value;
    error += (value - (sum - back)) + (term - back);
    value = sum;
  }
  DRELUOP_DEVICE void add(const Sum& other) {
    add(other.value);
    error += other.error;
  }
  // An infinite or NaN sum has a meaningless error.
  DRELUOP_DEVICE double total() const {
    const double plain = static_cast<double>(value);
    return value - value == Real(0) ? plain + static_cast<double>(error) : plain;
  }
};

// What leaves a thread: a sum of floats as one double, which holds it and its error.
template <class Real>
struct PartialOf {
  using Type = Sum<Real>;
};
template <>
struct PartialOf<float> {
  using Type = double;
};
template <class Real>
using Partial = typename PartialOf<Real>::Type;

DRELUOP_DEVICE double partial_of(const Sum<float>& sum) { return sum.total(); }
DRELUOP_DEVICE Sum<double> partial_of(const Sum<double>& sum) { return sum; }
DRELUOP_DEVICE void add(double* sum, double term) { *sum += term; }
template <class Real>
DRELUOP_DEVICE void add(Sum<Real>* sum, const Sum<Real>& term) {
  sum->add(term);
}
DRELUOP_DEVICE void add_term(double* sum, float term) { *sum += static_cast<double>(term); }
DRELUOP_DEVICE void add_term(Sum<double>* sum, double term) { sum->add(term); }
DRELUOP_DEVICE double total_of(double sum) { return sum; }
DRELUOP_DEVICE double total_of(const Sum<double>& sum) { return sum.total(); }

// At most 32 terms, pairwise: the rounding errors stay below five units in the last place of the sum of magnitudes.
template <int kTerms, class Real>
DRELUOP_DEVICE Real pairwise(const Real* terms) {
  if constexpr (kTerms == 1) {
    return terms[0];
  } else {
    return pairwise<kTerms / 2>(terms) + pairwise<kTerms / 2>(terms + kTerms / 2);
  }
}

DRELUOP_DEVICE double shuffled_down(double value, int step, int width) {
  return __shfl_down_sync(0xffffffffu, value, step, width);
}
template <class Real>
DRELUOP_DEVICE Sum<Real> shuffled_down(const Sum<Real>& sum, int step, int width) {
  Sum<Real> other;
  other.value = __shfl_down_sync(0xffffffffu, sum.value, step, width);
  other.error = __shfl_down_sync(0xffffffffu, sum.error, step, width);
  return other;
}

// Lane 0 of each team of `width` lanes gets the team's sum.
template <class P>
DRELUOP_DEVICE P team_sum(P sum, int width) {
#pragma unroll 1
  for (int step = width / 2; step > 0; step /= 2) add(&sum, shuffled_down(sum, step, width));
  return sum;
}

// A partial sum as another block left it: past the first-level cache, which is not coherent.
DRELUOP_DEVICE double read_partial(const double* from) { return __ldcg(from); }
template <class Real>
DRELUOP_DEVICE Sum<Real> read_partial(const Sum<Real>* from) {
  Sum<Real> sum;
  sum.value = __ldcg(&from->value);
  sum.error = __ldcg(&from->error);
  return sum;
}

// Thread 0 gets the block's sum; `scratch` has one sum per warp.
template <class Real>
DRELUOP_DEVICE Sum<Real> block_sum(Sum<Real> sum, Sum<Real>* scratch) {
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  sum = team_sum(sum, kWarp);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < warps; ++w) sum.add(scratch[w]);
  return sum;
}

// Where the terms of `count` sums lie. Of a block, in shared memory: term t of sum i at
// base[i * inner + t % inner + t / inner * period]; of several blocks: at base[t * period + i].
template <class P>
struct Terms {
  const P* base;
  uint32_t count, terms, inner;
  int64_t period;

  template <bool kShared>
  DRELUOP_DEVICE P read(uint32_t i, uint32_t t) const {
    if constexpr (kShared) {
      const P* first = base + i * inner;
      return terms == inner ? first[t] : first[t % inner + t / inner * static_cast<uint32_t>(period)];
    } else {
      return read_partial(base + t * period + i);
    }
  }
};

// Terms of other blocks that a thread asks for before it adds any.
constexpr uint32_t kTermsInFlight = 16;

// put(i, sum of its terms) for every i, in a fixed order; called by the whole block.
template <bool kShared, class P, class Put>
DRELUOP_DEVICE void sum_each(const Terms<P>& terms, const Put& put) {
  uint32_t log_width = 0;
  while (log_width < 5 && (1u << log_width) < terms.terms && (terms.count << log_width) < blockDim.x) ++log_width;
  const uint32_t width = 1u << log_width, lane = threadIdx.x % width;
  constexpr uint32_t kTogether = kShared ? 1 : kTermsInFlight;
#pragma unroll 1
  for (uint32_t base = 0; base < terms.count; base += blockDim.x >> log_width) {
    const uint32_t i = base + (threadIdx.x >> log_width);
    P sum{};
    if (i < terms.count) {
#pragma unroll 1
      for (uint32_t t = lane; t < terms.terms; t += kTogether * width) {
        P some[kTogether];
#pragma unroll
        for (uint32_t k = 0; k < kTogether; ++k)
          some[k] = t + k * width < terms.terms ? terms.template read<kShared>(i, t + k * width) : P{};
#pragma unroll
        for (uint32_t k = 0; k < kTogether; ++k) add(&sum, some[k]);
      }
    }
    sum = team_sum(sum, static_cast<int>(width));
    if (i < terms.count && lane == 0) put(i, sum);
  }
}

// Whether this block is the last of `expected` to get here: it sees all that the others wrote before.
// The barriers and one thread's fences order the memory of all its threads (PTX: causality order is transitive).
DRELUOP_DEVICE bool is_last_block(unsigned* counter, unsigned expected, unsigned* ticket) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    *ticket = atomicAdd(counter, 1u);
    __threadfence();
  }
  __syncthreads();
  return *ticket == expected - 1;
}

}  // namespace dreluop::cuda
