#include "common/isa.h"

#if defined(CPL_X86_VARIANTS)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "products/op.h"

namespace cpl {
namespace {

#if defined(CPL_X86_VARIANTS)
bool has_f16c() {  // GCC before 11 does not take "f16c" in __builtin_cpu_supports
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

#if defined(CPL_WITH_AMX)
bool has_amx() {
#if defined(CPL_EMULATED_UNITS)
  return true;
#else
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAvx512Bf16 = 1u << 5;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0 || eax < 1) return false;
  __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx);
  return (eax & kAvx512Bf16) != 0 && products::available();
#endif
}
#endif
#endif

// Asks for everything that csrc/CMakeLists.txt lets the compiler use in that copy.
bool supported(Isa isa) {
#if defined(CPL_X86_VARIANTS)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  switch (isa) {
    case Isa::kAmx:
#if defined(CPL_WITH_AMX)
      return supported(Isa::kAvx512) && has_amx();
#else
      return false;
#endif
    case Isa::kAvx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::kAvx2:
      return avx2;
    case Isa::kBaseline:
      return true;
  }
#endif
  return isa == Isa::kBaseline;
}

Isa choose() {
  constexpr Isa kBestFirst[] = {Isa::kAmx, Isa::kAvx512, Isa::kAvx2, Isa::kBaseline};
  const char* forced = std::getenv("CPL_ISA");
  for (Isa isa : kBestFirst) {
    if (forced ? std::strcmp(forced, isa_name(isa)) == 0 : supported(isa)) {
      if (supported(isa)) return isa;
      throw std::invalid_argument(std::string("CPL_ISA=") + forced +
                                  ": this CPU or this build does not have it; unset CPL_ISA");
    }
  }
  throw std::invalid_argument(std::string("CPL_ISA=") + forced + ": must be baseline, avx2, avx512 or amx");
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAmx:
      return "amx";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kBaseline:
      break;
  }
  return "baseline";
}

}  // namespace cpl
