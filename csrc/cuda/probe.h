// Whether CUDA code built here can run on a device: asked without launching anything.
#pragma once

#include <string>

namespace dreluop::cuda {

// Toolkit and driver versions as cudart counts them (13000 is 13.0); the driver's is 0 without a driver.
int runtime_version();
int driver_version();

// Empty if code of this build can run on the device, else why not.
std::string unavailable_reason(int device);

}  // namespace dreluop::cuda
