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
    std::vector<double> values(caps[k].numel());
    for_each_value(caps[k].dtype, TensorView(caps[k]), caps[k].numel(), [&](int64_t i, double m) { values[i] = m; });
    write_values(gradients[k].dtype, TensorView(gradients[k]), caps[k].numel(),
                 [&](int64_t i) { return scale * values[i]; });
  }
}

}  // namespace dreluop::cpu
