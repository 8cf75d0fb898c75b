#include <cuda_runtime.h>

#include "cuda/probe.h"

namespace dreluop::cuda {
namespace {

// Never launched: its attributes tell whether this file holds code for a device.
__global__ void sample() {}

}  // namespace

int runtime_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

std::string unavailable_reason(int device) {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (device < 0 || device >= count) return "there are only " + std::to_string(count) + " devices";
  int current = 0;
  cudaGetDevice(&current);
  error = cudaSetDevice(device);
  cudaFuncAttributes attributes;
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, sample);
  cudaSetDevice(current);
  // The error is reported here, not to whoever asks cudart next.
  cudaGetLastError();
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

}  // namespace dreluop::cuda
