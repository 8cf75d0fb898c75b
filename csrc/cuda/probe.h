// Whether CUDA code built here can run on a device: asked without a context on it, which would cost memory on every
// GPU.
#pragma once

#include <string>

namespace dreluop::cuda {

// Toolkit and driver versions as cudart counts them (13000 is 13.0); the driver's is 0 without a driver.
int runtime_version();
int driver_version();

// Empty if code built for these architectures ("80;90;100+PTX") can run on the device, else why not.
std::string unavailable_reason(int device, const std::string& archs);

// The same from a compute capability (90 is 9.0): machine code runs on its own major version from its minor version on,
// PTX, which is that of the lowest architecture, on everything newer.
std::string unsupported_capability(int capability, const std::string& archs);

}  // namespace dreluop::cuda
