// Scalar functions that mean the same on the host and on the device, and that vectorise on the host.
#pragma once

#include "common/macros.h"

namespace cpl {
namespace CPL_ISA {

#if defined(__CUDA_ARCH__)
CPL_HD float square_root(float x) { return sqrtf(x); }
CPL_HD double square_root(double x) { return sqrt(x); }
#else
CPL_HD float square_root(float x) { return __builtin_sqrtf(x); }
CPL_HD double square_root(double x) { return __builtin_sqrt(x); }
#endif

}  // namespace CPL_ISA
}  // namespace cpl
