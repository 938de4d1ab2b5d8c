// The arithmetic of layer_norm2d at one element, shared by the CPU and the CUDA kernels.
//
//   h = (x - mean) * rstd        the normalised input
//   n = center ? h : x * rstd    what weight multiplies
//   y = n * weight + bias
//   g = dy * weight
//   dx = rstd * (g - [center] <g> - h * <g n>),  <.> the mean over channels
#pragma once

#include "common/scalar.h"

namespace cpl {
namespace CPL_ISA {

template <typename A>
CPL_HD A layer_norm_rstd(A variance, A eps) {
  return A(1) / square_root(variance + eps);
}

template <typename A>
CPL_HD A layer_norm_scaled(A x, A mean, A rstd, bool center) {
  return (center ? x - mean : x) * rstd;
}

template <typename A>
CPL_HD A layer_norm_dx(A g, A h, A rstd, A mean_g, A mean_gn) {
  return rstd * (g - mean_g - h * mean_gn);
}

}  // namespace CPL_ISA
}  // namespace cpl
