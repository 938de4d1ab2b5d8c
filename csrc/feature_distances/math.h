// The arithmetic of feature_distances at one element, shared by the CPU and the CUDA kernels.
//
//   e = a - o                     of the inputs, or of both over their norms
//   term = |e| or e^2             d = sum of terms / M, M elements per image
//   slope = d(scale * term)/de    da += slope, do -= slope, with scale = dy / M
//   through x^ = x / ||x||:       dx = (dx^ - x^ <x^, dx^>) / ||x||, 0 where x has no direction
#pragma once

#include "common/macros.h"
#include "common/scalar.h"

namespace cpl {
namespace CPL_ISA {

#if defined(__CUDA_ARCH__)
CPL_HD float magnitude(float x) { return fabsf(x); }
CPL_HD double magnitude(double x) { return fabs(x); }
#else
CPL_HD float magnitude(float x) { return __builtin_fabsf(x); }
CPL_HD double magnitude(double x) { return __builtin_fabs(x); }
#endif

template <int kPower, typename A>
CPL_HD A distance_term(A e) {
  return kPower == 1 ? magnitude(e) : e * e;
}

template <int kPower, typename A>
CPL_HD A distance_slope(A e, A scale) {
  if (kPower == 2) return 2 * scale * e;
  return e > A(0) ? scale : e < A(0) ? -scale : A(0);
}

// 1 / ||x|| of a vector with that sum of squares, 0 where it is too short to have a direction (reference.py).
template <typename A>
CPL_HD A inverse_norm(A square) {
  const A norm = square_root(square);
  return norm > A(1e-12) ? A(1) / norm : A(0);
}

}  // namespace CPL_ISA
}  // namespace cpl
