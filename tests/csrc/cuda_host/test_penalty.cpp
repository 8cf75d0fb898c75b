// The penalty over lists of caps, and its gradients, on the host.
#include "harness.h"

using namespace testing;

namespace {

void check_penalty(const std::vector<int64_t>& sizes, DType result_dtype, bool strided) {
  std::vector<Array> arrays, gradients;
  std::vector<CapTensor> caps, outs;
  long double sum = 0;
  for (size_t k = 0; k < sizes.size(); ++k) {
    const DType dtype = kDTypes[k % 4];
    const std::vector<int64_t> dims = strided ? std::vector<int64_t>{3, sizes[k], 2} : std::vector<int64_t>{sizes[k]};
    const std::vector<int> order = strided ? std::vector<int>{1, 2, 0} : std::vector<int>{0};
    arrays.push_back(Array(dtype, dims, order, strided ? 1 : 0).fill(0));
    gradients.emplace_back(dtype, dims, strided ? std::vector<int>{2, 0, 1} : order);
    for (int64_t i = 0; i < arrays[k].count; ++i) sum += static_cast<long double>(arrays[k].get(i)) * arrays[k].get(i);
  }
  for (size_t k = 0; k < sizes.size(); ++k) {
    const auto describe = [](Array& a) {
      return CapTensor{a.data, a.dtype, static_cast<int>(a.sizes.size()), a.sizes.data(), a.strides.data()};
    };
    caps.push_back(describe(arrays[k]));
    outs.push_back(describe(gradients[k]));
  }
  double result = -1;
  float result32 = -1;
  const bool wide = result_dtype == DType::kFloat64;
  const Scalar scalar{wide ? static_cast<void*>(&result) : &result32, result_dtype};
  Space space(penalty_workspace(caps));
  const int before = host_cuda::launches;
  CHECK(penalty(caps, 0.5, scalar, space.memory.get(), nullptr).ok());
  CHECK(host_cuda::launches - before == static_cast<int>((caps.size() + kCapsPerLaunch - 1) / kCapsPerLaunch));
  const long double bound = 8 * (wide ? 2.3e-16L : 1.2e-7L) * 0.5L * sum;
  CHECK(std::abs((wide ? result : result32) - 0.5L * sum) <= bound, std::to_string(sizes.size()) + " tensors");

  const float grad = 3;
  CHECK(penalty_backward(caps, outs, 0.5, {const_cast<float*>(&grad), DType::kFloat32}, nullptr).ok());
  for (size_t k = 0; k < sizes.size(); ++k)
    for (int64_t i = 0; i < arrays[k].count; ++i)
      CHECK(same(gradients[k].get(i), rounded(gradients[k].dtype, 3 * arrays[k].get(i))), "penalty's gradient");
}

}  // namespace

int main() {
  check_penalty({1}, DType::kFloat32, false);
  check_penalty({0, 0}, DType::kFloat64, false);
  check_penalty({1, 4096, 4097, 0, 17, 9000, 3, 5}, DType::kFloat64, false);
  check_penalty({5, 100, 3}, DType::kFloat32, true);
  check_penalty(std::vector<int64_t>(17, 6), DType::kFloat32, false);
  check_penalty(std::vector<int64_t>(2 * kCapsPerLaunch + 20, 9), DType::kFloat64, false);
  CHECK_THROWS(penalty_workspace({}), "caps: got no tensor");
  std::puts("cuda_host penalty: ok");
}
