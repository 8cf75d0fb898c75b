// The slope of the soft surrogate in long double, for tests of the kernels.
#pragma once

#include <algorithm>
#include <cmath>

// sigmoid(x / width) - sigmoid((x - m) / width) for m > 0. `lower` is x, or its mirror image in the lower half of the
// cap, where no sigmoid is near 1.
struct SmoothedSlope {
  SmoothedSlope(long double x, long double m, long double width)
      : lower(std::min(x, m - x)), near(lower / width), far((std::isinf(m) ? -m : lower - m) / width) {
    // The difference cancels where the cap is far below the width.
    if (m < width)
      value = std::exp(far) * std::expm1(m / width) / ((1 + std::exp(near)) * (1 + std::exp(far)));
    else
      value = 1 / (1 + std::exp(-near)) - 1 / (1 + std::exp(-far));
  }

  // The error that a kernel may make, in eps: an argument has two roundings, which exp multiplies by it.
  double relative_error() const { return 2 * std::max(-static_cast<double>(near), 0.0) + 16; }

  long double lower, near, far, value = 0;
};
