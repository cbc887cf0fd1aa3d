#include "kernels/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace torch_lsh {

#if defined(__x86_64__)

namespace {

bool is_intel() {
  uint32_t eax, ebx, ecx, edx;
  return __get_cpuid(0, &eax, &ebx, &ecx, &edx) != 0 && ebx == signature_INTEL_ebx &&
         edx == signature_INTEL_edx && ecx == signature_INTEL_ecx;
}

// The state components that the system saves for a process (XCR0), 0 if it does not say.
uint64_t saved_state() {
  uint32_t eax, ebx, ecx, edx;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & bit_OSXSAVE) == 0) return 0;
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

}  // namespace

std::string why_no_amx() {
#if defined(__linux__)
  constexpr uint32_t kBFloat16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25,
                     kAmx = kBFloat16 | kTile | kInt8;
  constexpr uint64_t kTileConfiguration = 1u << 17, kTileData = 1u << 18,
                     kState = kTileConfiguration | kTileData;
  uint32_t eax, ebx, ecx, edx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kAmx) != kAmx)
    return "this CPU has no AMX for bfloat16 and int8";
  if ((saved_state() & kState) != kState) return "the system does not save AMX tiles";
  constexpr long kRequestPermission = 0x1023, kTileDataFeature = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileDataFeature) != 0)
    return std::string("the system refuses AMX tiles to this process: ") + std::strerror(errno);
  return "";
#else
  return "AMX needs Linux";
#endif
}

#else

std::string why_no_amx() {
  return "AMX needs an x86 CPU";
}
namespace {
bool is_intel() {
  return false;
}
}  // namespace

#endif

bool prefers_bfloat16_pairs() {
  return !is_intel();
}

Tuning tuning_of_cpu() {
  Tuning result;
  result.prefetches_to_l2 = is_intel();
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  const long bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);  // 0 or -1 where it is unknown
  if (bytes > 0) result.l1_bytes = bytes;
#endif
  return result;
}

}  // namespace torch_lsh
