#include "cpu/values.h"

namespace dreluop::cpu {

void penalty(const std::vector<CapTensor>& caps, double balancer, Scalar result) {
  double sum = 0, error = 0;
  for (const CapTensor& cap : caps) sum = two_sum(sum, sum_of_squares(cap.dtype, TensorView(cap), cap.numel()), &error);
  store(result, balancer * with_error(sum, error));
}

void penalty_backward(const std::vector<CapTensor>& caps, const std::vector<CapTensor>& gradients, double balancer,
                      Scalar grad) {
  const double scale = 2 * balancer * load(grad);
  for (size_t k = 0; k < caps.size(); ++k) {
    with_dtype_traits(caps[k].dtype, [&](auto traits) {
      using Traits = decltype(traits);
      auto* to = static_cast<typename Traits::Storage*>(gradients[k].data);
      for_each_value(caps[k].dtype, TensorView(caps[k]), caps[k].numel(),
                     [&](int64_t i, double m) { to[i] = Traits::round(scale * m); });
    });
  }
}

}  // namespace dreluop::cpu
