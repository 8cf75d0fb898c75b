#include <array>
#include <atomic>

#include "cuda/runtime.cuh"

namespace dreluop::cuda {

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int multiprocessors(int device, Status* status) {
  static std::array<std::atomic<int>, 64> known{};
  const bool cached = device >= 0 && device < static_cast<int>(known.size());
  if (cached && known[device] > 0) return known[device];
  int count = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  *status = {static_cast<int>(error), "cudaDeviceGetAttribute"};
  if (error != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  if (cached) known[device] = count;
  return count;
}

}  // namespace dreluop::cuda
