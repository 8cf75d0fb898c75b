// The instruction set in use: the best that the machine has, or a lower one asked for by DRELUOP_CPU_CAPABILITY.
#pragma once

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace dreluop::cpu {

enum class Capability { kDefault, kAvx2, kAvx512 };

inline const char* name_of(Capability capability) {
  return capability == Capability::kAvx512 ? "avx512" : capability == Capability::kAvx2 ? "avx2" : "default";
}

inline Capability best_capability() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Capability::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
    return Capability::kAvx2;
#endif
  return Capability::kDefault;
}

// A name above what the machine has leaves the best: `python -m dreluop` says so. Unknown names end at import.
inline Capability capability() {
  static const Capability chosen = [] {
    const Capability best = best_capability();
    const char* wanted = std::getenv("DRELUOP_CPU_CAPABILITY");
    for (const Capability c : {Capability::kDefault, Capability::kAvx2})
      if (wanted != nullptr && c < best && std::strcmp(wanted, name_of(c)) == 0) return c;
    return best;
  }();
  return chosen;
}

}  // namespace dreluop::cpu
