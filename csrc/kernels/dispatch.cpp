// Chooses the instruction set at run time.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/kernels.h"

namespace torch_lsh {

namespace scalar {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512_bf16 {
extern const Kernels table;
}
#elif defined(__aarch64__)
namespace neon {
extern const Kernels table;
}
#endif

namespace {

struct Candidate {
  const Kernels* table;
  bool supported;
};

// The level named `wanted`, or the best supported one if null or empty.
const Kernels* choose(const char* wanted) {
  // Best first; the last one runs on every CPU.
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  const bool has_avx512_bf16 = has_avx512 && __builtin_cpu_supports("avx512bf16");
  const Candidate candidates[] = {{&avx512_bf16::table, has_avx512_bf16},
                                  {&avx512::table, has_avx512},
                                  {&avx2::table, has_avx2},
                                  {&scalar::table, true}};
#elif defined(__aarch64__)
  const Candidate candidates[] = {{&neon::table, true}, {&scalar::table, true}};
#else
  const Candidate candidates[] = {{&scalar::table, true}};
#endif
  std::string runnable;
  for (const Candidate& candidate : candidates) {
    if (!candidate.supported) continue;
    if (wanted == nullptr || *wanted == '\0' || std::strcmp(wanted, candidate.table->name) == 0)
      return candidate.table;
    runnable += (runnable.empty() ? "" : ", ") + std::string(candidate.table->name);
  }
  throw std::runtime_error("torch_lsh: instruction set (TORCH_LSH_SIMD) is '" + std::string(wanted) +
                           "'; wanted one that this CPU supports: " + runnable);
}

std::atomic<const Kernels*> current{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* table = current.load(std::memory_order_acquire);
  if (table == nullptr) {
    table = choose(std::getenv("TORCH_LSH_SIMD"));
    current.store(table, std::memory_order_release);
  }
  return *table;
}

void use_level(const char* name) {
  current.store(choose(name), std::memory_order_release);
}

}  // namespace torch_lsh
