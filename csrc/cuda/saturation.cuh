// Counts of off, inside and capped elements per cap, and which samples have any element inside.
#pragma once

#include "cuda/caps.cuh"

namespace dreluop::cuda {

constexpr int kSaturationVecs = 16;      // of a thread
constexpr int kMostSharedCounts = 4096;  // counters that a block keeps to itself until it ends

struct SaturationParameters {
  Operands<Access::kGeneral> operands;  // x
  FlatPlan plan;
  CapMap map, samples;
  CapSource<Access::kGeneral> cap;
  CapIndex index;
  CapArray counts;
  int64_t caps;
  uint8_t* has_gradient;
};

template <class Traits>
struct SaturationPass {
  using T = typename Traits::Storage;
  static constexpr int kVec = sizeof(T) == 2 ? 8 : 4;
  using Caps = CapsOfVec<Traits, kVec, Access::kGeneral, CapMode::kEach>;

  const SaturationParameters& p;

  // Counts of one cap, and and a sample known to have a gradient, pending while the next element has the same.
  struct Pending {
    int64_t cap = -1;
    uint32_t counts[3] = {};
    int64_t has_gradient = -1;
  };

  DRELUOP_DEVICE bool in_shared() const { return 3 * p.caps <= kMostSharedCounts; }
  DRELUOP_DEVICE static unsigned* shared_counts() {
    return reinterpret_cast<unsigned*>(shared_memory() + kFlatThreads * kScratchBytes);
  }

  DRELUOP_DEVICE void add_globally(int region, int64_t cap, uint32_t n) const {
    auto* counts = static_cast<unsigned long long*>(p.counts.data) + region * p.caps;
    if (n != 0) atomicAdd(counts + offset_of(p.index, p.counts, cap), static_cast<unsigned long long>(n));
  }

  DRELUOP_DEVICE void flush(Pending* pending) const {
    if (pending->cap < 0) return;
#pragma unroll
    for (int r = 0; r < 3; ++r) {
      if (!in_shared())
        add_globally(r, pending->cap, pending->counts[r]);
      else if (pending->counts[r] != 0)
        atomicAdd(shared_counts() + r * p.caps + pending->cap, pending->counts[r]);
      pending->counts[r] = 0;
    }
  }

  DRELUOP_DEVICE void count(int64_t i, int n, Pending* pending) const {
    const Pack<T, kVec> x = unpack<T, kVec>(p.operands.load<T, kVec>(0, i, n));
    const Caps caps(p.map, i);
    T cap_values[kVec];
    caps.read_as(p.cap, cap_values);
    uint32_t region_bits = 0;
#pragma unroll
    for (int e = 0; e < kVec; ++e)
      region_bits |=
          static_cast<uint32_t>(region_of<Traits>(capped_value<Traits>(x.v[e], cap_values[e]), cap_values[e]))
          << (2 * e);
    int64_t cap = caps.first, left = caps.left, left_of_sample;
    int64_t sample = p.samples.cap_of(i, &left_of_sample);
#pragma unroll 1
    for (int e = 0; e < n; ++e, region_bits >>= 2) {
      if (cap != pending->cap) {
        flush(pending);
        pending->cap = cap;
      }
      const uint32_t region = region_bits & 3;
      pending->counts[kOff] += region == kOff;
      pending->counts[kInside] += region == kInside;
      pending->counts[kCapped] += region == kCapped;
      if (region == kInside && sample != pending->has_gradient) {
        p.has_gradient[sample] = 1;
        pending->has_gradient = sample;
      }
      if (--left == 0) {
        left = static_cast<int64_t>(p.map.inner.divisor);
        cap = p.map.after(cap);
      }
      if (--left_of_sample == 0) {
        left_of_sample = static_cast<int64_t>(p.samples.inner.divisor);
        sample = p.samples.after(sample);
      }
    }
  }

  DRELUOP_DEVICE void run() const {
    const int shared_size = in_shared() ? static_cast<int>(3 * p.caps) : 0;
    for (int k = threadIdx.x; k < shared_size; k += kFlatThreads) shared_counts()[k] = 0;
    __syncthreads();
    Pending pending;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * (kFlatThreads * kSaturationVecs) + threadIdx.x;
#pragma unroll 1
    for (int k = 0; k < kSaturationVecs; ++k) {
      const int64_t i = (first + k * kFlatThreads) * kVec;
      if (i < p.plan.numel) count(i, static_cast<int>(min(p.plan.numel - i, int64_t{kVec})), &pending);
    }
    flush(&pending);
    __syncthreads();
    for (int k = threadIdx.x; k < shared_size; k += kFlatThreads)
      add_globally(k / static_cast<int>(p.caps), k % static_cast<int>(p.caps), shared_counts()[k]);
  }
};

template <class Traits>
__global__ void __launch_bounds__(kFlatThreads) saturation_kernel(const __grid_constant__ SaturationParameters p) {
  SaturationPass<Traits>{p}.run();
}

}  // namespace dreluop::cuda
