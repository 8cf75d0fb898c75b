// Which elements share which cap. Every case is one view of x, traversed in memory order, as (outer, caps, inner):
// element i uses cap (i / inner) % caps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dreluop/dim_vector.h"

namespace dreluop {

enum class Granularity : uint8_t { kLayer, kChannel, kNeuron };

struct CapLayout {
  int64_t outer = 1;
  int64_t caps = 1;
  int64_t inner = 1;
};

struct Traversal {
  DimVector order;  // dimensions of x, outermost first, in the order in which the elements are traversed
  Granularity granularity = Granularity::kLayer;
  CapLayout layout;
  // One cap, but a bias per channel: the layout counts channels, and all of them use the one cap.
  bool shared_cap = false;
};

inline std::string to_string(const DimVector& sizes) {
  std::string text = "(";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + (sizes.size() == 1 ? ",)" : ")");
}

inline int64_t product(const DimVector& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, [](int64_t a, int64_t b) { return a * b; });
}

// The shape rule: () or (1,) is one cap, (x.shape[dim],) one per channel, x.shape[1:] one per neuron.
inline Granularity granularity_of(const DimVector& x, const DimVector& cap, int64_t dim) {
  const auto rank = static_cast<int64_t>(x.size());
  if (cap.empty() || (cap.size() == 1 && cap[0] == 1)) return Granularity::kLayer;
  if (cap.size() > 1) {
    if (rank == static_cast<int64_t>(cap.size()) + 1 && std::equal(cap.begin(), cap.end(), x.begin() + 1))
      return Granularity::kNeuron;
    throw std::invalid_argument("cap: got shape " + to_string(cap) + " for x of shape " + to_string(x) +
                                "; a cap of more than one dimension must have shape x.shape[1:]");
  }
  if (dim < -rank || dim >= rank)
    throw std::invalid_argument("dim: got " + std::to_string(dim) + " for x of shape " + to_string(x));
  if (cap[0] != x[dim < 0 ? dim + rank : dim])
    throw std::invalid_argument("cap: got shape " + to_string(cap) + " for x of shape " + to_string(x) +
                                " and dim=" + std::to_string(dim));
  return Granularity::kChannel;
}

// Dimensions from the largest stride to the smallest.
inline DimVector memory_order(const DimVector& strides) {
  DimVector order(strides.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  // Insertion: stable, and without the buffer of std::stable_sort.
  for (size_t i = 1; i < order.size(); ++i)
    for (size_t j = i; j > 0 && strides[order[j - 1]] < strides[order[j]]; --j) std::swap(order[j - 1], order[j]);
  return order;
}

// Whether two elements have one address.
inline bool overlaps_itself(const DimVector& sizes, const DimVector& strides) {
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return false;
    if (sizes[d] > 1) dims.emplace_back(strides[d], sizes[d]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t span = 1;
  bool nested = true;
  for (const auto& [stride, size] : dims) {
    nested = nested && stride >= span;
    span += stride * (size - 1);
  }
  if (nested) return false;
  // Strides that interleave without nesting are rare: look at every address.
  std::vector<int64_t> offsets{0};
  for (const auto& [stride, size] : dims) {
    const size_t before = offsets.size();
    for (int64_t i = 1; i < size; ++i)
      for (size_t j = 0; j < before; ++j) offsets.push_back(offsets[j] + i * stride);
  }
  std::sort(offsets.begin(), offsets.end());
  return std::adjacent_find(offsets.begin(), offsets.end()) != offsets.end();
}

// Traverse x in memory order where one (outer, caps, inner) view allows it; else neuron caps are traversed with the
// batch outermost.
inline Traversal traversal_of(const DimVector& x, const DimVector& order, const DimVector& cap, int64_t dim) {
  Traversal traversal;
  traversal.granularity = granularity_of(x, cap, dim);
  traversal.order = order;
  const int64_t numel = product(x);
  if (traversal.granularity == Granularity::kLayer) {
    traversal.layout = {1, 1, numel};
    return traversal;
  }
  if (traversal.granularity == Granularity::kChannel) {
    const int64_t channel = dim < 0 ? dim + static_cast<int64_t>(x.size()) : dim;
    CapLayout layout{1, x[channel], 1};
    bool before = true;
    for (const int64_t d : order) {
      if (d == channel)
        before = false;
      else
        (before ? layout.outer : layout.inner) *= x[d];
    }
    traversal.layout = layout;
    return traversal;
  }
  // A dimension of size one lies anywhere in memory.
  DimVector real;
  for (const int64_t d : order)
    if (x[d] != 1 || d == 0) real.push_back(d);
  const int64_t caps = product(cap);
  if (real.back() == 0 && real.front() != 0 && x[0] != 1) {
    traversal.layout = {1, caps, x[0]};
    return traversal;
  }
  if (real.front() != 0) {
    traversal.order.clear();
    traversal.order.push_back(0);
    for (const int64_t d : order)
      if (d != 0) traversal.order.push_back(d);
  }
  traversal.layout = {x[0], caps, 1};
  return traversal;
}

// The shape rule of a bias: the cap's shape for neuron caps, else one value per channel of dim.
inline void check_bias(const DimVector& x, const DimVector& cap, const DimVector& bias, int64_t dim) {
  DimVector expected = cap;
  if (granularity_of(x, cap, dim) != Granularity::kNeuron) {
    const auto rank = static_cast<int64_t>(x.size());
    if (dim < -rank || dim >= rank)
      throw std::invalid_argument("dim: got " + std::to_string(dim) + " for x of shape " + to_string(x));
    expected = {x[dim < 0 ? dim + rank : dim]};
  }
  if (bias != expected)
    throw std::invalid_argument("bias: got shape " + to_string(bias) + " for x of shape " + to_string(x) +
                                " and a cap of shape " + to_string(cap) + "; expected " + to_string(expected));
}

// With a bias, a single cap is traversed as one per channel.
inline Traversal traversal_with_bias(const DimVector& x, const DimVector& order, const DimVector& cap,
                                     const DimVector& bias, int64_t dim) {
  check_bias(x, cap, bias, dim);
  // Without channels the one cap stays, and has its gradient.
  const bool per_channel = granularity_of(x, cap, dim) == Granularity::kLayer && product(bias) > 0;
  Traversal traversal = traversal_of(x, order, per_channel ? bias : cap, dim);
  traversal.shared_cap = per_channel;
  return traversal;
}

}  // namespace dreluop
