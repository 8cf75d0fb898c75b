// Counts of off, inside and capped elements per cap, and which samples have any element inside.
#include "cuda/arguments.h"

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
  using T = typename Traits::T;
  using Number = typename Traits::Number;
  static constexpr int kVec = Traits::kVec;

  const SaturationParameters& p;

  // Counts of one cap, and a sample known to have a gradient, pending while the next element has the same.
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
    const auto x = unpack<Traits>(p.operands.load<Traits>(0, i, n));
    const CapsOfVec<Traits> caps(p.map, i);
    T cap_values[kVec];
    caps.read_as(p.cap, cap_values);
    uint32_t region_bits = 0;
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      const T y = capped_value<Number>(x.v[e], cap_values[e]);
      region_bits |= static_cast<uint32_t>(region_of<Number>(y, cap_values[e])) << (2 * e);
    }
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
      p.map.advance(&cap, &left);
      p.samples.advance(&sample, &left_of_sample);
    }
  }

  DRELUOP_DEVICE void run() const {
    const int shared_size = in_shared() ? static_cast<int>(3 * p.caps) : 0;
    for (int k = threadIdx.x; k < shared_size; k += kFlatThreads) shared_counts()[k] = 0;
    __syncthreads();
    Pending pending;
    for_each_vec<Traits>(blockIdx.x, kSaturationVecs, p.plan.numel, [&](int64_t i, int n) { count(i, n, &pending); });
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

Status saturation(const Problem& problem, const Saturation& pass) {
  check(problem);
  const int64_t numel = problem.numel(), caps = problem.layout.caps;
  if (pass.counts == nullptr && caps > 0) refuse("counts: missing");
  if (pass.has_gradient == nullptr && pass.samples > 0) refuse("has_gradient: missing");
  if (numel > 0 && (pass.x.data == nullptr || pass.cap.data == nullptr)) refuse("x, cap: missing");
  Status status = zero(pass.counts, static_cast<size_t>(3 * caps) * sizeof(int64_t), problem.stream);
  if (status.ok()) status = zero(pass.has_gradient, static_cast<size_t>(pass.samples), problem.stream);
  if (!status.ok() || numel == 0) return status;
  SaturationParameters p{};
  OperandSet(problem, {pass.x}).fill(&p.operands);
  p.plan = flat_plan(problem.dtype, numel, 0, kSaturationVecs);
  p.plan.blocks = checked_blocks(up_to(numel, int64_t{kFlatThreads} * kSaturationVecs * vec_of(problem.dtype)));
  p.map = cap_map(merged(problem.layout));
  p.samples = cap_map({1, pass.samples, pass.sample_inner});
  CapReading(problem, pass.cap).fill(&p.cap);
  const PerCap counts{pass.counts, DType::kFloat64, pass.counts_strides};
  const PerCap* const from[] = {&counts};
  CapArray* const to[] = {&p.counts};
  p.index = index_caps(problem, from, to);
  p.caps = caps;
  p.has_gradient = pass.has_gradient;
  const size_t shared =
      kScratchOfBlock + (3 * caps <= kMostSharedCounts ? static_cast<size_t>(3 * caps) * sizeof(unsigned) : 0);
  return with_dtype_traits(problem.dtype, [&](auto traits) {
    return launch("dreluop saturation", saturation_kernel<GeneralTraits<decltype(traits)>>, p.plan.blocks, kFlatThreads,
                  shared, problem.stream, p);
  });
}

}  // namespace dreluop::cuda
