// What Python asks the library about CUDA, through ctypes: nothing here may need a running CUDA when it loads.
#include <string>

#include "cuda/probe.h"

#define DRELUOP_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// Valid until the thread asks again.
const char* kept(const std::string& text) {
  static thread_local std::string last;
  last = text;
  return last.c_str();
}

}  // namespace

// 13000 is 13.0.
DRELUOP_EXPORT int dreluop_cuda_version() { return dreluop::cuda::runtime_version(); }

DRELUOP_EXPORT const char* dreluop_cuda_archs() { return DRELUOP_CUDA_ARCHS; }

// Empty if the kernels can run on the device.
DRELUOP_EXPORT const char* dreluop_cuda_unavailable_reason(int device) {
  return kept(dreluop::cuda::unavailable_reason(device, DRELUOP_CUDA_ARCHS));
}

// The same for a compute capability: 90 is 9.0.
DRELUOP_EXPORT const char* dreluop_cuda_unsupported_capability(int capability) {
  return kept(dreluop::cuda::unsupported_capability(capability, DRELUOP_CUDA_ARCHS));
}
