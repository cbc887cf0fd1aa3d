// Chooses the instruction set at run time.
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels/cpu.h"
#include "kernels/kernels.h"

namespace torch_lsh {

Tuning tuning;

namespace scalar {
extern const Kernels table;
}
namespace amx_emulated {
extern const TileTables tables;
}
namespace arm_emulated {
extern const TileTables tables;
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
namespace amx_bf16 {
extern const TileTables tables;
}
#elif defined(__aarch64__)
namespace neon {
extern const Kernels table;
}
#if defined(__linux__)
namespace neon_bf16 {
extern const Kernels table;
}
#endif
#if defined(TORCH_LSH_SVE256) && !defined(__clang__)
namespace sve256 {
extern const Kernels table;
}
#endif
#endif

namespace {

Kernels with_tiles(Kernels kernels, const TileTables& tables, const char* name) {
  static_cast<ProductKernels<BFloat16>&>(kernels) = tables;
  static_cast<TopkKernels<BFloat16>&>(kernels) = tables;
  static_cast<TopkKernels<int8_t>&>(kernels) = tables;
  kernels.name = name;
  kernels.multiplies_bfloat16 = true;
  return kernels;
}

// Levels that are put together when they are first asked for: what suits a CPU is not known before.
const Kernels* amx_emulated_table() {
  static const Kernels kernels = with_tiles(scalar::table, amx_emulated::tables, "amx_emulated");
  return &kernels;
}
const Kernels* arm_emulated_table() {
  static const Kernels kernels = with_tiles(scalar::table, arm_emulated::tables, "arm_emulated");
  return &kernels;
}
#if defined(__x86_64__)
const Kernels* amx_table() {
  static const Kernels kernels = with_tiles(avx512_bf16::table, amx_bf16::tables, "amx_bf16");
  return &kernels;
}
const Kernels* avx512_bf16_table() {
  static const Kernels kernels = [] {
    Kernels table = avx512_bf16::table;
    table.multiplies_bfloat16 = prefers_bfloat16_pairs();
    return table;
  }();
  return &kernels;
}
#endif

// Collects why levels cannot be had, until one is found.
class Choice {
 public:
  explicit Choice(const char* wanted) : wanted_(wanted == nullptr ? "" : wanted) {}

  bool any() const { return wanted_.empty(); }
  bool is(const char* name) const { return wanted_ == name; }

  void offer(const char* name, const Kernels* table) {
    if (found_ == nullptr && (any() || is(name))) found_ = table;
    runnable_ += (runnable_.empty() ? "" : ", ") + std::string(name);
  }

  void offer_unless(const std::string& reason, const char* name, const Kernels* table) {
    if (reason.empty()) {
      offer(name, table);
    } else {
      refuse(name, reason);
    }
  }

  void refuse(const char* name, const std::string& reason) {
    if (is(name)) reason_ = " (" + reason + ")";
  }

  const Kernels* found() const {
    if (found_ != nullptr) return found_;
    throw std::runtime_error("torch_lsh: instruction set (TORCH_LSH_SIMD) is '" + wanted_ +
                             "'; wanted one that this CPU supports: " + runnable_ + reason_);
  }

 private:
  std::string wanted_, runnable_, reason_;
  const Kernels* found_ = nullptr;
};

// The level named `wanted`, or the best supported one if null or empty.
const Kernels* choose(const char* wanted) {
  static const bool tuned = (tuning = tuning_of_cpu(), true);  // once, whichever thread is first
  (void)tuned;
  Choice choice(wanted);
  // Best first; the last one runs on every CPU.
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  const bool has_avx512_bf16 =
      has_avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  // The system is asked only if tiles may be used.
  const std::string no_amx = has_avx512_bf16 ? why_no_amx(choice.any() || choice.is("amx_bf16"))
                                             : "AMX is used with AVX512-BF16 only";
  choice.offer_unless(no_amx, "amx_bf16", amx_table());
  if (has_avx512_bf16) choice.offer("avx512_bf16", avx512_bf16_table());
  if (has_avx512) choice.offer("avx512", &avx512::table);
  if (has_avx2) choice.offer("avx2", &avx2::table);
#elif defined(__aarch64__)
#if defined(TORCH_LSH_SVE256) && !defined(__clang__)
  choice.offer_unless(why_no_sve256(), "sve256", &sve256::table);
#else
  choice.refuse("sve256", "torch_lsh was compiled without it");
#endif
#if defined(__linux__)
  choice.offer_unless(why_no_neon_bf16(), "neon_bf16", &neon_bf16::table);
#else
  choice.refuse("neon_bf16", "it needs Linux");
#endif
  choice.offer("neon", &neon::table);
#endif
  choice.offer("scalar", &scalar::table);
  // For tests.
  if (choice.is("amx_emulated")) choice.offer("amx_emulated", amx_emulated_table());
  if (choice.is("arm_emulated")) choice.offer("arm_emulated", arm_emulated_table());
  return choice.found();
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
