// What the tests of the operators on the host shim ask of it.
#include "host_cuda.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// The launch after `after` more fails with this error.
EXPORT void host_cuda_fail_launch(int error, int after) {
  host_cuda::error_of_launch = error;
  host_cuda::launches_before_error = after;
}
EXPORT void host_cuda_fail_memset(int error) { host_cuda::error_of_zero = error; }
EXPORT int host_cuda_launches() { return host_cuda::launches; }
