// The few names of CUDA that csrc/cuda uses, for a host compiler: a block's threads are fibers of one thread, run one
// at a time from barrier to barrier. Shows wrong indices, reads and writes out of bounds or misaligned (with
// sanitizers), missing and divergent barriers. Does not show races between atomics, nor anything of speed.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace host_cuda {

enum class Wait : uint8_t { kNone, kBlock, kWarp, kDone };

constexpr size_t kStack = size_t{128} << 10;
constexpr unsigned kWarpSize = 32;

struct Index {
  unsigned x;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Index thread;
  Wait wait = Wait::kNone;
  uint64_t lane_value[2];
  unsigned shuffles = 0;
};

struct Block {
  Index grid, block, index;
  ucontext_t scheduler;
  std::vector<Fiber*> fibers;
  unsigned current = 0;
  std::function<void()> body;
  std::unique_ptr<unsigned char[]> shared;
  size_t shared_bytes = 0;
  std::exception_ptr error;
};

inline Block* running = nullptr;
// Blocks, and threads within a block, run from the last to the first.
inline bool backwards = false;
// An error for the launch after this many more, or for the next memset.
inline int error_of_launch = 0;
inline int launches_before_error = 0;
inline int error_of_zero = 0;
inline int launches = 0;

inline Fiber& me() { return *running->fibers[running->current]; }

inline void wait_for(Wait what) {
  me().wait = what;
  swapcontext(&me().context, &running->scheduler);
}

inline void fiber_main() {
  try {
    running->body();
  } catch (...) {
    running->error = std::current_exception();
  }
  wait_for(Wait::kDone);
}

inline unsigned char* shared_memory() { return running->shared.get(); }

// What a GPU traps: an instruction for global memory on an address of shared memory.
inline void check_global(const void* address) {
  const auto* byte = static_cast<const unsigned char*>(address);
  if (byte < running->shared.get() || byte >= running->shared.get() + running->shared_bytes) return;
  std::fputs("host_cuda: an access to global memory at an address of shared memory\n", stderr);
  std::_Exit(1);
}

template <class T>
void store_to_global(T* address, T value) {
  check_global(address);
  *address = value;
}

// Lets fibers [begin, end) go on if all that are not done wait for `what`; whether any did.
inline bool release(unsigned begin, unsigned end, Wait what) {
  unsigned waiting = 0, alive = 0;
  for (unsigned i = begin; i < end; ++i) {
    alive += running->fibers[i]->wait != Wait::kDone;
    waiting += running->fibers[i]->wait == what;
  }
  if (waiting == 0 || waiting != alive) return false;
  for (unsigned i = begin; i < end; ++i)
    if (running->fibers[i]->wait == what) running->fibers[i]->wait = Wait::kNone;
  return true;
}

inline void prepare(Fiber& fiber, unsigned thread) {
  if (!fiber.stack) fiber.stack.reset(new char[kStack]);
  fiber.thread = {thread};
  fiber.wait = Wait::kNone;
  fiber.shuffles = 0;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = &running->scheduler;
  makecontext(&fiber.context, fiber_main, 0);
}

inline void run_block(size_t shared) {
  Block& block = *running;
  const auto threads = static_cast<unsigned>(block.fibers.size());
  // Not what the block before left, and no plausible number: all ones are NaN.
  memset(block.shared.get(), 0xff, shared);
  for (unsigned i = 0; i < threads; ++i) prepare(*block.fibers[i], i);
  for (;;) {
    for (unsigned k = 0; k < threads; ++k) {
      const unsigned i = backwards ? threads - 1 - k : k;
      if (block.fibers[i]->wait != Wait::kNone) continue;
      block.current = i;
      swapcontext(&block.scheduler, &block.fibers[i]->context);
      if (block.error) std::rethrow_exception(block.error);
    }
    bool released = false;
    for (unsigned w = 0; w < threads; w += kWarpSize)
      released |= release(w, w + kWarpSize < threads ? w + kWarpSize : threads, Wait::kWarp);
    if (released || release(0, threads, Wait::kBlock)) continue;
    for (const Fiber* fiber : block.fibers)
      if (fiber->wait != Wait::kDone) throw std::runtime_error("host_cuda: a barrier that some threads never reach");
    return;
  }
}

template <class Parameters>
int launch(void (*kernel)(Parameters), int64_t blocks, int threads, size_t shared, void*,
           const Parameters& parameters) {
  if (error_of_launch != 0 && launches_before_error-- == 0) {
    const int error = error_of_launch;
    error_of_launch = 0;
    return error;
  }
  if (blocks <= 0 || blocks > INT32_MAX || threads <= 0 || threads > 1024 || threads % kWarpSize != 0 ||
      shared > 49152 || sizeof(Parameters) > 32764)
    return 9;  // cudaErrorInvalidConfiguration
  ++launches;
  Block block;
  running = &block;
  block.grid = {static_cast<unsigned>(blocks)};
  block.block = {static_cast<unsigned>(threads)};
  static std::vector<std::unique_ptr<Fiber>> pool;
  while (pool.size() < static_cast<size_t>(threads)) pool.push_back(std::make_unique<Fiber>());
  for (int i = 0; i < threads; ++i) block.fibers.push_back(pool[i].get());
  block.shared.reset(new unsigned char[shared]);
  block.shared_bytes = shared;
  block.body = [&] { kernel(parameters); };
  for (int64_t b = 0; b < blocks; ++b) {
    block.index = {static_cast<unsigned>(backwards ? blocks - 1 - b : b)};
    run_block(shared);
  }
  running = nullptr;
  return 0;
}

inline int zero(void* memory, size_t bytes, void*) {
  if (error_of_zero != 0) {
    const int error = error_of_zero;
    error_of_zero = 0;
    return error;
  }
  memset(memory, 0, bytes);
  return 0;
}

}  // namespace host_cuda

#define threadIdx (host_cuda::me().thread)
#define blockIdx (host_cuda::running->index)
#define blockDim (host_cuda::running->block)
#define gridDim (host_cuda::running->grid)

inline void __syncthreads() { host_cuda::wait_for(host_cuda::Wait::kBlock); }
inline void __threadfence() {}

template <class T>
T __shfl_down_sync(unsigned, T value, unsigned delta, int width) {
  host_cuda::Fiber& self = host_cuda::me();
  // Two slots in turn: no lane can be two shuffles ahead of another.
  uint64_t* ticket = &self.lane_value[self.shuffles++ % 2];
  memcpy(ticket, &value, sizeof(T));
  const auto place = static_cast<size_t>(ticket - self.lane_value);
  host_cuda::wait_for(host_cuda::Wait::kWarp);
  const unsigned lane = self.thread.x % static_cast<unsigned>(width);
  if (lane + delta < static_cast<unsigned>(width))
    memcpy(&value, &host_cuda::running->fibers[self.thread.x + delta]->lane_value[place], sizeof(T));
  return value;
}

template <class T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}

template <class T>
T __ldcg(const T* address) {
  host_cuda::check_global(address);
  return *address;
}

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}

template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
