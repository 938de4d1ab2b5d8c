// Which copy of the CPU kernels runs on this machine.
#pragma once

#include "common/macros.h"

namespace cpl {

// kAmx: the kernels of kAvx512, and products of matrices on the matrix units (products/).
enum class Isa { kBaseline, kAvx2, kAvx512, kAmx };

// The best that this CPU has, or what CPL_ISA=baseline|avx2|avx512|amx forces. Chosen once. Throws when
// CPL_ISA names one that this CPU or this build lacks.
Isa active_isa();
const char* isa_name(Isa isa);

}  // namespace cpl

// Declares a kernel entry point once per instruction set.
#define CPL_DECLARE_PER_ISA(declaration) \
  namespace baseline {                   \
  declaration;                           \
  }                                      \
  namespace avx2 {                       \
  declaration;                           \
  }                                      \
  namespace avx512 {                     \
  declaration;                           \
  }

// Calls the active instruction set's copy: CPL_CALL_ISA(layer_norm2d_forward(args)).
#if defined(CPL_X86_VARIANTS)
#define CPL_CALL_ISA(call)          \
  switch (::cpl::active_isa()) {    \
    case ::cpl::Isa::kAmx:          \
    case ::cpl::Isa::kAvx512:       \
      return ::cpl::avx512::call;   \
    case ::cpl::Isa::kAvx2:         \
      return ::cpl::avx2::call;     \
    default:                        \
      return ::cpl::baseline::call; \
  }
#else
#define CPL_CALL_ISA(call) return ::cpl::baseline::call
#endif
