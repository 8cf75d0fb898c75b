// The (outer, caps, inner) view against a count over every element, for all orders of memory.
#include <algorithm>
#include <random>

#include "check.h"
#include "dreluop/layout.h"

using namespace dreluop;

namespace {

DimVector coordinates(int64_t index, const DimVector& sizes, const DimVector& order) {
  DimVector result(sizes.size());
  for (size_t i = order.size(); i-- > 0;) {
    result[order[i]] = index % sizes[order[i]];
    index /= sizes[order[i]];
  }
  return result;
}

int64_t index_of(const DimVector& at, const DimVector& sizes, const DimVector& order) {
  int64_t index = 0;
  for (const int64_t d : order) index = index * sizes[d] + at[d];
  return index;
}

void check_traversal(const DimVector& x, const DimVector& order, const DimVector& cap, int64_t dim) {
  const Traversal traversal = traversal_of(x, order, cap, dim);
  const std::string which = "x " + to_string(x) + " order " + to_string(order) + " cap " + to_string(cap);
  DimVector sorted = traversal.order;
  std::sort(sorted.begin(), sorted.end());
  for (size_t d = 0; d < x.size(); ++d) CHECK(sorted[d] == static_cast<int64_t>(d), which);
  CHECK(traversal.layout.outer * traversal.layout.caps * traversal.layout.inner == product(x), which);
  DimVector cap_order;
  for (const int64_t d : traversal.order)
    if (d != 0) cap_order.push_back(d);
  for (int64_t i = 0; i < product(x); ++i) {
    const DimVector at = coordinates(i, x, traversal.order);
    int64_t expected = 0;
    if (traversal.granularity == Granularity::kChannel)
      expected = at[dim < 0 ? dim + static_cast<int64_t>(x.size()) : dim];
    if (traversal.granularity == Granularity::kNeuron) expected = index_of(at, x, cap_order);
    CHECK(i / traversal.layout.inner % traversal.layout.caps == expected, which + " element " + std::to_string(i));
  }
}

}  // namespace

int main() {
  std::mt19937 random(0);
  for (int trial = 0; trial < 20000; ++trial) {
    DimVector x(1 + random() % 5), order(x.size());
    for (int64_t& size : x) size = 1 + random() % 4;
    std::iota(order.begin(), order.end(), int64_t{0});
    std::shuffle(order.begin(), order.end(), random);
    const auto rank = static_cast<int64_t>(x.size());
    const int64_t dim = static_cast<int64_t>(random() % (2 * rank)) - rank;
    check_traversal(x, order, {}, dim);
    check_traversal(x, order, {1}, dim);
    check_traversal(x, order, {x[dim < 0 ? dim + rank : dim]}, dim);
    if (rank > 2) check_traversal(x, order, DimVector(x.begin() + 1, x.end()), dim);
  }
  CHECK((memory_order({12, 1, 4}) == DimVector{0, 2, 1}));

  CHECK_THROWS(granularity_of({2, 3}, {4}, 1), "cap: got shape (4,) for x of shape (2, 3) and dim=1");
  CHECK_THROWS(granularity_of({2, 3}, {3}, 2), "dim: got 2");
  CHECK_THROWS(granularity_of({2, 3}, {3}, -3), "dim: got -3");
  CHECK_THROWS(granularity_of({2, 3, 4}, {3, 5}, 1), "x.shape[1:]");

  CHECK(!overlaps_itself({3, 4}, {4, 1}));
  CHECK(!overlaps_itself({3, 4}, {1, 3}));
  CHECK(!overlaps_itself({2, 3}, {3, 2}), "interleaved, but every address once");
  CHECK(overlaps_itself({4, 3}, {2, 3}), "interleaved, and 6 is met twice");
  CHECK(overlaps_itself({3, 4}, {0, 1}));
  CHECK(overlaps_itself({3, 2}, {1, 1}), "an unfold");
  CHECK(!overlaps_itself({0, 2}, {0, 0}), "no element");
  CHECK(!overlaps_itself({1, 2}, {0, 1}), "a dimension of size one");
  std::puts("layout: ok");
}
