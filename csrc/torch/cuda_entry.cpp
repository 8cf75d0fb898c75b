// What Python asks the library about CUDA, through ctypes: nothing here may need a running CUDA when it loads.
#include <string>

#include "cuda/probe.h"

#define DRELUOP_EXPORT extern "C" __attribute__((visibility("default")))

// 13000 is 13.0.
DRELUOP_EXPORT int dreluop_cuda_version() { return dreluop::cuda::runtime_version(); }

DRELUOP_EXPORT const char* dreluop_cuda_archs() { return DRELUOP_CUDA_ARCHS; }

// Empty if the kernels can run on the device. The text is valid until the thread asks again.
DRELUOP_EXPORT const char* dreluop_cuda_unavailable_reason(int device) {
  static thread_local std::string reason;
  reason = dreluop::cuda::unavailable_reason(device);
  return reason.c_str();
}
