// Gives torch the operators of a device.
#pragma once

#include <torch/csrc/stable/library.h>

#include "torch/batch_norm.h"
#include "torch/operators.h"

namespace dreluop {

template <class Device, class Library>
void implement(Library& library) {
  library.impl("capped_relu", TORCH_BOX(&Operators<Device>::capped_relu));
  library.impl("capped_relu_", TORCH_BOX(&Operators<Device>::capped_relu_));
  library.impl("capped_relu_with_aux", TORCH_BOX(&Operators<Device>::capped_relu_with_aux));
  library.impl("capped_relu_with_aux_", TORCH_BOX(&Operators<Device>::capped_relu_with_aux_));
  library.impl("capped_relu_backward", TORCH_BOX(&Operators<Device>::capped_relu_backward));
  library.impl("capped_relu_jvp", TORCH_BOX(&Operators<Device>::capped_relu_jvp));
  library.impl("capped_relu_surrogate_backward", TORCH_BOX(&Operators<Device>::capped_relu_surrogate_backward));
  library.impl("cap_saturation", TORCH_BOX(&Operators<Device>::cap_saturation));
  library.impl("cap_penalty", TORCH_BOX(&Operators<Device>::cap_penalty));
  library.impl("cap_penalty_backward", TORCH_BOX(&Operators<Device>::cap_penalty_backward));
}

template <class Device, class Library>
void implement_batch_norm(Library& library) {
  library.impl("capped_batch_norm", TORCH_BOX(&BatchNormOperators<Device>::capped_batch_norm));
  library.impl("capped_batch_norm_backward", TORCH_BOX(&BatchNormOperators<Device>::capped_batch_norm_backward));
}

}  // namespace dreluop
