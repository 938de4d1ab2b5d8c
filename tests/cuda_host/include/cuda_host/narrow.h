// The two 16-bit floats, as bits. Every conversion and operation rounds to nearest, ties to even, once.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda_host/math.h"
#include "cuda_host/vectors.h"

namespace cuda_host {

// Rounds a double to the nearest float with an odd last bit unless exact: rounding that result once
// more, to a format at least two bits narrower, is as good as rounding the double.
inline float to_float_odd(double x) {
  const float near = static_cast<float>(x);
  if (static_cast<double>(near) == x || !std::isfinite(x)) return near;
  uint32_t bits = bit_cast<uint32_t>(near);
  if (std::isinf(near)) return bit_cast<float>(bits - 1);              // beyond the largest float, whose bits are odd
  if (std::fabs(static_cast<double>(near)) > std::fabs(x)) bits -= 1;  // towards zero
  return bit_cast<float>(bits | 1u);
}

struct BFloat16Format {
  static uint16_t round(float x) {
    const uint32_t wide = bit_cast<uint32_t>(x);
    if (std::isnan(x)) return 0x7fff;  // CUDA's canonical NaN
    return static_cast<uint16_t>((wide + 0x7fffu + (wide >> 16 & 1u)) >> 16);
  }
  static uint16_t round(double x) { return round(to_float_odd(x)); }
  static float widen(uint16_t bits) { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

struct HalfFormat {
  static uint16_t round(float x) {
    return std::isnan(x) ? static_cast<uint16_t>(0x7fff) : bit_cast<uint16_t>(static_cast<_Float16>(x));
  }
  static uint16_t round(double x) {
    return std::isnan(x) ? static_cast<uint16_t>(0x7fff) : bit_cast<uint16_t>(static_cast<_Float16>(x));
  }
  static float widen(uint16_t bits) { return static_cast<float>(bit_cast<_Float16>(bits)); }
};

template <typename Format>
struct Narrow {
  uint16_t bits;

  Narrow() = default;  // uninitialised, as shared memory must be
  Narrow(float x) : bits(Format::round(x)) {}
  Narrow(double x) : bits(Format::round(x)) {}
  template <typename I, typename = std::enable_if_t<std::is_integral_v<I>>>
  Narrow(I x) : bits(Format::round(static_cast<double>(x))) {}
  operator float() const { return Format::widen(bits); }

  static Narrow from_bits(uint16_t bits) {
    Narrow out;
    out.bits = bits;
    return out;
  }
  Narrow operator-() const { return from_bits(bits ^ 0x8000u); }
  Narrow& operator+=(Narrow b) { return *this = *this + b; }
  Narrow& operator-=(Narrow b) { return *this = *this - b; }
  Narrow& operator*=(Narrow b) { return *this = *this * b; }
  Narrow& operator/=(Narrow b) { return *this = *this / b; }
  // fp32 holds more than twice the digits plus two, so rounding twice is rounding once.
  friend Narrow operator+(Narrow a, Narrow b) { return Narrow(float(a) + float(b)); }
  friend Narrow operator-(Narrow a, Narrow b) { return Narrow(float(a) - float(b)); }
  friend Narrow operator*(Narrow a, Narrow b) { return Narrow(float(a) * float(b)); }
  friend Narrow operator/(Narrow a, Narrow b) { return Narrow(float(a) / float(b)); }
  friend bool operator==(Narrow a, Narrow b) { return float(a) == float(b); }
  friend bool operator!=(Narrow a, Narrow b) { return float(a) != float(b); }
  friend bool operator<(Narrow a, Narrow b) { return float(a) < float(b); }
  friend bool operator>(Narrow a, Narrow b) { return float(a) > float(b); }
  friend bool operator<=(Narrow a, Narrow b) { return float(a) <= float(b); }
  friend bool operator>=(Narrow a, Narrow b) { return float(a) >= float(b); }
};

template <typename Format>
struct alignas(4) Narrow2 {
  Narrow<Format> x, y;
};

}  // namespace cuda_host

#define CUDA_HOST_NARROW template <typename F>
CUDA_HOST_NARROW cuda_host::Narrow<F> __hadd(cuda_host::Narrow<F> a, cuda_host::Narrow<F> b) { return a + b; }
CUDA_HOST_NARROW cuda_host::Narrow<F> __hsub(cuda_host::Narrow<F> a, cuda_host::Narrow<F> b) { return a - b; }
CUDA_HOST_NARROW cuda_host::Narrow<F> __hmul(cuda_host::Narrow<F> a, cuda_host::Narrow<F> b) { return a * b; }
CUDA_HOST_NARROW cuda_host::Narrow<F> __hdiv(cuda_host::Narrow<F> a, cuda_host::Narrow<F> b) { return a / b; }
CUDA_HOST_NARROW cuda_host::Narrow<F> __hneg(cuda_host::Narrow<F> a) { return -a; }
CUDA_HOST_NARROW cuda_host::Narrow<F> __habs(cuda_host::Narrow<F> a) {
  return cuda_host::Narrow<F>::from_bits(a.bits & 0x7fffu);
}
CUDA_HOST_NARROW bool __hisnan(cuda_host::Narrow<F> a) { return std::isnan(float(a)); }
CUDA_HOST_NARROW bool __hgt(cuda_host::Narrow<F> a, cuda_host::Narrow<F> b) { return a > b; }
CUDA_HOST_NARROW bool __hlt(cuda_host::Narrow<F> a, cuda_host::Narrow<F> b) { return a < b; }
CUDA_HOST_NARROW cuda_host::Narrow<F> __hmax(cuda_host::Narrow<F> a, cuda_host::Narrow<F> b) {
  return cuda_host::Narrow<F>(fmaxf(a, b));
}
CUDA_HOST_NARROW cuda_host::Narrow<F> __hmin(cuda_host::Narrow<F> a, cuda_host::Narrow<F> b) {
  return cuda_host::Narrow<F>(fminf(a, b));
}
// The product of two is exact in fp64.
CUDA_HOST_NARROW cuda_host::Narrow<F> __hfma(cuda_host::Narrow<F> a, cuda_host::Narrow<F> b, cuda_host::Narrow<F> c) {
  return cuda_host::Narrow<F>(std::fma(double(float(a)), double(float(b)), double(float(c))));
}
CUDA_HOST_NARROW cuda_host::Narrow2<F> __hadd2(cuda_host::Narrow2<F> a, cuda_host::Narrow2<F> b) {
  return {a.x + b.x, a.y + b.y};
}
CUDA_HOST_NARROW cuda_host::Narrow2<F> __hsub2(cuda_host::Narrow2<F> a, cuda_host::Narrow2<F> b) {
  return {a.x - b.x, a.y - b.y};
}
CUDA_HOST_NARROW cuda_host::Narrow2<F> __hmul2(cuda_host::Narrow2<F> a, cuda_host::Narrow2<F> b) {
  return {a.x * b.x, a.y * b.y};
}
CUDA_HOST_NARROW cuda_host::Narrow2<F> __hfma2(cuda_host::Narrow2<F> a, cuda_host::Narrow2<F> b,
                                               cuda_host::Narrow2<F> c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
CUDA_HOST_NARROW float __low2float(cuda_host::Narrow2<F> a) { return a.x; }
CUDA_HOST_NARROW float __high2float(cuda_host::Narrow2<F> a) { return a.y; }
#undef CUDA_HOST_NARROW
