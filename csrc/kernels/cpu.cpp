#include "kernels/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#include <sys/prctl.h>
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

// Zen 3 or Zen 4.
bool is_amd_family_25() {
  uint32_t eax, ebx, ecx, edx;
  if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0 || ebx != signature_AMD_ebx || edx != signature_AMD_edx ||
      ecx != signature_AMD_ecx || __get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0)
    return false;
  const uint32_t base = eax >> 8 & 0xf, extended = eax >> 20 & 0xff;
  return base == 0xf && base + extended == 25;
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

std::string why_no_amx([[maybe_unused]] bool ask) {
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
  if (!ask || syscall(SYS_arch_prctl, kRequestPermission, kTileDataFeature) == 0) return "";
  if (errno == ENOSPC) return "a signal stack of this process has no room for AMX tiles";
  return std::string("the system refuses AMX tiles to this process: ") + std::strerror(errno);
#else
  return "AMX needs Linux";
#endif
}

#else

std::string why_no_amx(bool) {
  return "AMX needs an x86 CPU";
}
namespace {
bool is_intel() {
  return false;
}
bool is_amd_family_25() {
  return false;
}
}  // namespace

#endif

#if defined(__aarch64__) && defined(__linux__)

namespace {

// Bits of the auxiliary vector that older kernel headers do not name.
constexpr unsigned long kSve = 1ul << 22;  // AT_HWCAP
constexpr unsigned long kSveInt8 = 1ul << 9, kSveBFloat16 = 1ul << 12, kInt8 = 1ul << 13,
                        kBFloat16 = 1ul << 14;

bool has(unsigned long type, unsigned long features) {
  return (getauxval(type) & features) == features;
}

}  // namespace

std::string why_no_neon_bf16() {
  return has(AT_HWCAP2, kBFloat16 | kInt8) ? "" : "this CPU has no BF16 and I8MM";
}

std::string why_no_sve256() {
  if (!has(AT_HWCAP, kSve) || !has(AT_HWCAP2, kSveBFloat16 | kSveInt8 | kBFloat16 | kInt8))
    return "this CPU has no SVE with BF16 and I8MM";
  constexpr int kGetVectorLength = 51, kLengthMask = 0xffff;  // PR_SVE_GET_VL
  const int bytes = prctl(kGetVectorLength) & kLengthMask;
  return bytes == 32 ? "" : "vectors of SVE have " + std::to_string(8 * bytes) + " bits here";
}

#else

std::string why_no_neon_bf16() {
  return "it needs Linux on AArch64";
}
std::string why_no_sve256() {
  return "it needs Linux on AArch64";
}

#endif

bool prefers_bfloat16_pairs() {
  return !is_intel();
}

Tuning tuning_of_cpu() {
  Tuning result;
  result.prefetches_to_l2 = is_intel() || is_amd_family_25();
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  const long bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);  // 0 or -1 where it is unknown
  if (bytes > 0) result.l1_bytes = bytes;
#endif
  return result;
}

}  // namespace torch_lsh
