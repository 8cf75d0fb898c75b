// Counts of off, inside and capped elements per cap, and which samples have any element inside.
#pragma once

#include "cuda/caps.cuh"

namespace dreluop::cuda {

constexpr int kSaturationGroups = 16;    // of a thread
constexpr int kMostSharedCounts = 4096;  // counters that a block keeps to itself until it ends

struct SaturationParameters {
  Operands<Access::kGeneral> operands;  // x
  FlatPlan plan;
  CapMap map, samples;
  CapSource<Access::kGeneral> cap;
  CapIndex index;
  CapArray counts;
  int64_t caps;
  uint8_t* live;
};

template <class Format>
struct SaturationPass {
  using T = typename Format::Storage;
  static constexpr int kGroup = sizeof(T) == 2 ? 8 : 4;
  using Caps = CapsOfGroup<Format, kGroup, Access::kGeneral, CapMode::kEach>;

  const SaturationParameters& p;

  // Counts of one cap, and a sample known to live, held back while the next element has the same.
  struct Held {
    int64_t cap = -1;
    uint32_t counts[3] = {};
    int64_t live = -1;
  };

  DRELUOP_DEVICE bool in_shared() const { return 3 * p.caps <= kMostSharedCounts; }
  DRELUOP_DEVICE static unsigned* shared_counts() {
    return reinterpret_cast<unsigned*>(shared_memory() + kFlatThreads * kRoomBytes);
  }

  DRELUOP_DEVICE void add_globally(int region, int64_t cap, uint32_t n) const {
    auto* counts = static_cast<unsigned long long*>(p.counts.data) + region * p.caps;
    if (n != 0) atomicAdd(counts + offset_of(p.index, p.counts, cap), static_cast<unsigned long long>(n));
  }

  DRELUOP_DEVICE void flush(Held* held) const {
    if (held->cap < 0) return;
#pragma unroll
    for (int r = 0; r < 3; ++r) {
      if (!in_shared())
        add_globally(r, held->cap, held->counts[r]);
      else if (held->counts[r] != 0)
        atomicAdd(shared_counts() + r * p.caps + held->cap, held->counts[r]);
      held->counts[r] = 0;
    }
  }

  DRELUOP_DEVICE void count(int64_t i, int n, Held* held) const {
    const Pack<T, kGroup> x = unpack<T, kGroup>(p.operands.load<T, kGroup>(0, i, n));
    const Caps caps(p.map, i);
    T cap_values[kGroup];
    caps.read_as(p.cap, cap_values);
    uint32_t codes = 0;
#pragma unroll
    for (int e = 0; e < kGroup; ++e)
      codes |= static_cast<uint32_t>(region_of<Format>(capped_value<Format>(x.v[e], cap_values[e]), cap_values[e]))
               << (2 * e);
    int64_t cap = caps.first, left = caps.left, left_of_sample;
    int64_t sample = p.samples.cap_of(i, &left_of_sample);
#pragma unroll 1
    for (int e = 0; e < n; ++e, codes >>= 2) {
      if (cap != held->cap) {
        flush(held);
        held->cap = cap;
      }
      const uint32_t region = codes & 3;
      held->counts[kOff] += region == kOff;
      held->counts[kInside] += region == kInside;
      held->counts[kCapped] += region == kCapped;
      if (region == kInside && sample != held->live) {
        p.live[sample] = 1;
        held->live = sample;
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
    Held held;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * (kFlatThreads * kSaturationGroups) + threadIdx.x;
#pragma unroll 1
    for (int k = 0; k < kSaturationGroups; ++k) {
      const int64_t i = (first + k * kFlatThreads) * kGroup;
      if (i < p.plan.numel) count(i, static_cast<int>(min(p.plan.numel - i, int64_t{kGroup})), &held);
    }
    flush(&held);
    __syncthreads();
    for (int k = threadIdx.x; k < shared_size; k += kFlatThreads)
      add_globally(k / static_cast<int>(p.caps), k % static_cast<int>(p.caps), shared_counts()[k]);
  }
};

template <class Format>
__global__ void __launch_bounds__(kFlatThreads) saturation_kernel(const __grid_constant__ SaturationParameters p) {
  SaturationPass<Format>{p}.run();
}

}  // namespace dreluop::cuda
