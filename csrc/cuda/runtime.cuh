// What the kernels and launchers use of CUDA. Tests compile the same sources with a host compiler, on top of their own
// implementation of the few names that nvcc would know.
#pragma once

#include "cuda/kernels.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define DRELUOP_DEVICE __device__ __forceinline__
#else
#include "host_cuda.h"
#define DRELUOP_DEVICE inline
#endif

namespace dreluop::cuda {

// The block's shared memory, 16-byte aligned; its size is given at launch.
DRELUOP_DEVICE unsigned char* shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
#else
  return host_cuda::shared_memory();
#endif
}

// 16 bytes to global memory in one store: nvcc would write parts that it knows to be constant by themselves.
DRELUOP_DEVICE void store_word(uint4* to, uint4 word) {
#if defined(__CUDACC__)
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(word.x), "r"(word.y),
               "r"(word.z), "r"(word.w)
               : "memory");
#else
  host_cuda::store_to_global(to, word);
#endif
}

template <class Parameters>
Status launch(const char* name, void (*kernel)(Parameters), int64_t blocks, int threads, size_t shared, void* stream,
              const Parameters& parameters) {
  if (blocks == 0) return {};
#if defined(__CUDACC__)
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, parameters);
  // Reported here, not to whoever asks cudart next.
  if (error != cudaSuccess) cudaGetLastError();
  return {static_cast<int>(error), name};
#else
  return {host_cuda::launch(kernel, blocks, threads, shared, stream, parameters), name};
#endif
}

inline Status zero(void* memory, size_t bytes, void* stream) {
  if (bytes == 0) return {};
#if defined(__CUDACC__)
  const cudaError_t error = cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) cudaGetLastError();
  return {static_cast<int>(error), "cudaMemsetAsync"};
#else
  return {host_cuda::zero(memory, bytes, stream), "cudaMemsetAsync"};
#endif
}

}  // namespace dreluop::cuda
