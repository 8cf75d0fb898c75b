#include <cuda_runtime.h>

#include <algorithm>
#include <sstream>

#include "cuda/probe.h"

namespace dreluop::cuda {
namespace {

// Kernel parameters of more than 4 kB.
constexpr int kOldestDriver = 12010;

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string capability_text(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

std::string failed(cudaError_t error) {
  // The error is reported here, not to whoever asks cudart next.
  cudaGetLastError();
  return cudaGetErrorString(error);
}

}  // namespace

int runtime_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

std::string unsupported_capability(int capability, const std::string& archs) {
  int lowest = 0;
  std::istringstream list(archs);
  for (std::string arch; std::getline(list, arch, ';');) {
    const int number = std::stoi(arch);
    if (number / 10 == capability / 10 && number <= capability) return "";
    lowest = lowest == 0 ? number : std::min(lowest, number);
  }
  if (archs.find("+PTX") != std::string::npos && capability >= lowest) return "";
  return "its compute capability " + capability_text(capability) + " is not among those built for, " + archs;
}

std::string unavailable_reason(int device, const std::string& archs) {
  const int driver = driver_version();
  if (driver < kOldestDriver || driver / 1000 < runtime_version() / 1000)
    return "the driver is for CUDA " + version_text(driver) + ", this build for " + version_text(runtime_version());
  int major = 0, minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return error == cudaSuccess ? unsupported_capability(10 * major + minor, archs) : failed(error);
}

}  // namespace dreluop::cuda
