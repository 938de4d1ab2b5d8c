// The exponential of info_nce, in a form that the compiler vectorises.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace cpl {
namespace CPL_ISA {

// exp(x) for x <= 0, or a rounding above, to 2 ulp. 0 where the result would be subnormal and for -inf; NaN for NaN.
//
// x = n ln 2 + r with |r| <= ln(2) / 2. n comes from adding 1.5 * 2^23, at which neighbouring numbers are 1 apart: no
// conversion to an integer, which a NaN must not reach.
CPL_HD_IN_LOOPS float exp_below_one(float x) {
  constexpr float kMagic = 12582912.0f;
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  const float clamped = x < -89.0f ? -89.0f : x;
  const float shifted = clamped * kLog2E + kMagic;
  const float whole = shifted - kMagic;
  const float r = (clamped - whole * kLn2High) - whole * kLn2Low;
  float poly = 1.0f / 5040;  // Taylor: the next term is below 1e-8
  poly = poly * r + 1.0f / 720;
  poly = poly * r + 1.0f / 120;
  poly = poly * r + 1.0f / 24;
  poly = poly * r + 1.0f / 6;
  poly = poly * r + 0.5f;
  poly = poly * r + 1.0f;
  poly = poly * r + 1.0f;
  int32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  const int32_t exponent = bits - 0x4b400000 + 127;
  const uint32_t power_bits = static_cast<uint32_t>(exponent > 0 ? exponent : 0) << 23;
  float power;
  memcpy(&power, &power_bits, sizeof power);
  return poly * power;
}

CPL_HD_IN_LOOPS double exp_below_one(double x) {
  constexpr double kMagic = 6755399441055744.0;
  constexpr double kLog2E = 1.4426950408889634, kLn2High = 6.93147180369123816490e-01,
                   kLn2Low = 1.90821492927058770002e-10;
  const double clamped = x < -710.0 ? -710.0 : x;
  const double shifted = clamped * kLog2E + kMagic;
  const double whole = shifted - kMagic;
  const double r = (clamped - whole * kLn2High) - whole * kLn2Low;
  double poly = 1.0 / 6227020800;  // Taylor to r^13: the next term is below 1e-17
  poly = poly * r + 1.0 / 479001600;
  poly = poly * r + 1.0 / 39916800;
  poly = poly * r + 1.0 / 3628800;
  poly = poly * r + 1.0 / 362880;
  poly = poly * r + 1.0 / 40320;
  poly = poly * r + 1.0 / 5040;
  poly = poly * r + 1.0 / 720;
  poly = poly * r + 1.0 / 120;
  poly = poly * r + 1.0 / 24;
  poly = poly * r + 1.0 / 6;
  poly = poly * r + 0.5;
  poly = poly * r + 1.0;
  poly = poly * r + 1.0;
  int64_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  const int64_t exponent = bits - 0x4338000000000000 + 1023;
  const uint64_t power_bits = static_cast<uint64_t>(exponent > 0 ? exponent : 0) << 52;
  double power;
  memcpy(&power, &power_bits, sizeof power);
  return poly * power;
}

}  // namespace CPL_ISA
}  // namespace cpl
