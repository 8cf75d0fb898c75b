#include "cpu/traverse.h"

namespace dreluop::cpu {
namespace {

// Threads meet in these counters. Whole numbers: the order of the additions does not show.
void add_atomically(int64_t* counter, int64_t n) {
  if (n != 0) __atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

void mark_has_gradient(const uint8_t* regions, int64_t begin, int64_t n, int64_t numel, const Saturation& pass) {
  if (pass.samples == numel) {
    for (int64_t j = 0; j < n; ++j) pass.has_gradient[begin + j] = regions[j] == kInside;
    return;
  }
  for (int64_t i = 0; i < n;) {
    const int64_t index = begin + i;
    const int64_t length = std::min(n - i, pass.sample_inner - index % pass.sample_inner);
    bool any = false;
    for (int64_t j = i; j < i + length; ++j) any |= regions[j] == kInside;
    uint8_t* const mark = &pass.has_gradient[index / pass.sample_inner % pass.samples];
    if (any) __atomic_store_n(mark, uint8_t{1}, __ATOMIC_RELAXED);
    i += length;
  }
}

// The elements of each cap that are inside and capped, in traversal order.
struct Counts {
  std::vector<int64_t> inside, capped;
};

template <class Traits>
class SaturationPass {
  using T = typename Traits::Storage;

 public:
  SaturationPass(const Problem& problem, const Saturation& pass, Counts* counts)
      : problem_(problem),
        pass_(pass),
        x_(problem, pass.x),
        plan_(plan_for(problem.numel(), problem.layout)),
        caps_(plan_, problem, pass.cap),
        counts_(counts) {}

  void run() const {
    parallel_over_tiles(problem_, plan_, [&](int64_t tile) {
      if (plan_.variant == Variant::kRuns)
        run_tile(tile_at(plan_, tile));
      else
        column_tile(tile_at(plan_, tile));
    });
  }

 private:
  // Calls f(regions, n, first column) for the blocks of a tile.
  template <class F>
  void for_each_block(const Tile& tile, const F& f) const {
    const int64_t cap = tile.first_row % problem_.layout.caps;
    T x_buffer[kBlock], y[kBlock];
    uint8_t regions[kBlock];
    for (int64_t r = tile.first_row; r < tile.last_row; ++r) {
      for (int64_t c = tile.first_column; c < tile.last_column; c += kBlock) {
        const int64_t i = r * plan_.row + c;
        const Stretch s{i, std::min({kBlock, tile.last_column - c, plan_.numel - i}), cap, c};
        if (s.n <= 0) break;
        loops_.forward(x_.read(i, s.n, x_buffer), caps_.at(s), y, s.n, kZeroNothing);
        loops_.regions(y, caps_.at(s), regions, s.n);
        f(regions, s.n);
        mark_has_gradient(regions, i, s.n, plan_.numel, pass_);
      }
    }
  }

  void run_tile(const Tile& tile) const {
    int64_t inside = 0, capped = 0;
    for_each_block(tile, [&](const uint8_t* regions, int64_t n) { loops_.count(regions, n, &inside, &capped); });
    add(tile.first_row % problem_.layout.caps, inside, capped);
  }

  // A tile of columns has one block per row.
  void column_tile(const Tile& tile) const {
    int32_t inside[kBlock] = {}, capped[kBlock] = {};
    for_each_block(tile, [&](const uint8_t* regions, int64_t n) {
      for (int64_t j = 0; j < n; ++j) {
        inside[j] += regions[j] & 1;
        capped[j] += regions[j] >> 1;
      }
    });
    for (int64_t c = tile.first_column; c < tile.last_column; ++c)
      add(c / problem_.layout.inner % problem_.layout.caps, inside[c - tile.first_column],
          capped[c - tile.first_column]);
  }

  void add(int64_t cap, int64_t inside, int64_t capped) const {
    add_atomically(&counts_->inside[cap], inside);
    add_atomically(&counts_->capped[cap], capped);
  }

  const Problem& problem_;
  const Saturation& pass_;
  const TensorView x_;
  const Plan plan_;
  const CapValues<Traits> caps_;
  Counts* const counts_;
  const Primitives<Traits>& loops_ = primitives<Traits>();
};

}  // namespace

void saturation(const Problem& problem, const Saturation& pass) {
  const int64_t caps = problem.layout.caps, shared = caps > 0 ? problem.numel() / caps : 0;
  Counts counts{std::vector<int64_t>(caps, 0), std::vector<int64_t>(caps, 0)};
  std::fill_n(pass.has_gradient, pass.samples, uint8_t{0});
  if (problem.numel() > 0)
    with_dtype_traits(problem.dtype,
                      [&](auto traits) { SaturationPass<decltype(traits)>(problem, pass, &counts).run(); });
  // The counters are in traversal order, the result in the order of the cap.
  const auto write = [&](int region, const auto& count_of) {
    const TensorView to(pass.counts + region * caps, problem.cap_rank, problem.cap_sizes, pass.counts_strides);
    for (int64_t c = 0; c < caps; ++c) {
      const int64_t count = count_of(c);
      to.write(c, 1, &count, &count);
    }
  };
  write(kOff, [&](int64_t c) { return shared - counts.inside[c] - counts.capped[c]; });
  write(kInside, [&](int64_t c) { return counts.inside[c]; });
  write(kCapped, [&](int64_t c) { return counts.capped[c]; });
}

}  // namespace dreluop::cpu
