// Fresh memory in large pages: a large output is mostly page faults, and one of 2 MB replaces 512 of 4 kB.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dreluop {

// The fewest large pages that memory must hold to be asked for, as DRELUOP_HUGE_PAGES has it; 0 for never.
inline int64_t least_huge_pages() {
  static const int64_t least = [] {
    const char* const wanted = std::getenv("DRELUOP_HUGE_PAGES");
    if (wanted != nullptr && std::strcmp(wanted, "never") == 0) return 0;
    return wanted != nullptr && std::strcmp(wanted, "always") == 0 ? 1 : 2;
  }();
  return least;
}

// Asks for large pages where the system grants them on request (transparent_hugepage/enabled: madvise); only a hint.
// Memory that has its pages already keeps them.
inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kHugePage = int64_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (begin + bytes) / kHugePage * kHugePage;
  const int64_t least = least_huge_pages();
  if (least != 0 && bytes >= least * kHugePage && first < last)
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace dreluop
