#include "common/isa.h"

#if defined(CPL_X86_VARIANTS)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace cpl {
namespace {

#if defined(CPL_X86_VARIANTS)
bool has_f16c() {  // GCC before 11 does not take "f16c" in __builtin_cpu_supports
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

// Asks for everything that csrc/CMakeLists.txt lets the compiler use in that copy.
bool supported(Isa isa) {
#if defined(CPL_X86_VARIANTS)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  switch (isa) {
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
  constexpr Isa kBestFirst[] = {Isa::kAvx512, Isa::kAvx2, Isa::kBaseline};
  const char* forced = std::getenv("CPL_ISA");
  for (Isa isa : kBestFirst) {
    if (forced ? std::strcmp(forced, isa_name(isa)) == 0 : supported(isa)) {
      if (supported(isa)) return isa;
      throw std::invalid_argument(std::string("CPL_ISA=") + forced +
                                  ": this CPU or this build does not have it; unset CPL_ISA");
    }
  }
  throw std::invalid_argument(std::string("CPL_ISA=") + forced + ": must be baseline, avx2 or avx512");
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
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
