// The normal distribution function and its density, in a form that the compiler vectorises; the same on the device.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace cpl {
namespace CPL_ISA {

// exp(x) for x <= 0, to 2 ulp; 0 where the result would be subnormal. libm's would be a call per element.
// A NaN gives 0 (it must not reach the conversion to an integer): whoever calls this multiplies by x itself.
CPL_HD float exp_negative(float x) {
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  const float clamped = x > -89.0f ? x : -89.0f;
  const float scaled = clamped * kLog2E;
  const int32_t n = static_cast<int32_t>(scaled - 0.5f);  // to nearest: scaled <= 0 and truncation is upwards
  const float whole = static_cast<float>(n);
  const float r = (clamped - whole * kLn2High) - whole * kLn2Low;  // |r| <= ln(2) / 2
  float poly = 1.0f / 5040;                                        // Taylor: the next term is below 1e-8
  poly = poly * r + 1.0f / 720;
  poly = poly * r + 1.0f / 120;
  poly = poly * r + 1.0f / 24;
  poly = poly * r + 1.0f / 6;
  poly = poly * r + 0.5f;
  poly = poly * r + 1.0f;
  poly = poly * r + 1.0f;
  const int32_t exponent = n + 127;
  const int32_t bits = (exponent > 0 ? exponent : 0) << 23;  // 0 at -89, so no second comparison of x: GCC would
                                                             // thread the two into a branch and not vectorise
  float power;
  memcpy(&power, &bits, sizeof power);
  return poly * power;
}

template <typename A>
struct Normal {
  A below;    // P(X <= x)
  A density;  // exp(-x^2 / 2) / sqrt(2 pi)
};

// With z = |x| / sqrt(2): P(X <= -|x|) = erfc(z) / 2, and erfc(z) = exp(-z^2) * q(t), t = 1 / (1 + 0.3 z), with
// q a polynomial without constant term, fitted here to 2e-8 relative on z in [0, 10] (beyond, exp(-z^2) is 0 in
// fp32). Unlike (1 + erf) / 2 it keeps its digits in the lower tail.
CPL_HD Normal<float> normal(float x) {
  const float z = __builtin_fabsf(x) * 0.707106781f;
#if defined(__CUDA_ARCH__)
  // Two instructions of the special-function unit. exp errs by |z^2| ulp more: nothing beside what the result is added
  // to.
  const float gauss = __expf(-z * z);
  const float t = __fdividef(1.0f, 1.0f + 0.3f * z);
#else
  const float gauss = exp_negative(-z * z);
  const float t = 1.0f / (1.0f + 0.3f * z);
#endif
  float q = -0.129522815f;
  q = q * t + 0.48556295f;
  q = q * t + -0.512277842f;
  q = q * t + 0.547720134f;
  q = q * t + -0.0946510509f;
  q = q * t + 0.214926317f;
  q = q * t + 0.148339078f;
  q = q * t + 0.170715243f;
  q = q * t + 0.169188008f;
  const float tail = 0.5f * gauss * q * t;
  const float upper = 1.0f - tail;
  return {x > 0.0f ? upper : tail, gauss * 0.398942280f};
}

CPL_HD Normal<double> normal(double x) {
  return {0.5 * erfc(-x * 0.70710678118654752440), exp(-0.5 * x * x) * 0.39894228040143267794};
}

}  // namespace CPL_ISA
}  // namespace cpl
