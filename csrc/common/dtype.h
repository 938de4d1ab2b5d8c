// Element types as Python names them, and how the CPU reads and writes them.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "common/macros.h"

namespace cpl {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3 };  // cpl_kernels/core.py

struct BFloat16 {
  uint16_t bits;
};

// Each instruction set needs its own copies of the inline helpers below: with one shared copy the
// linker could keep the AVX-512 one and call it on a machine that lacks AVX-512.
namespace CPL_ISA {

inline float load(const float* p) { return *p; }
inline double load(const double* p) { return *p; }
inline float load(const BFloat16* p) {
  const uint32_t wide = static_cast<uint32_t>(p->bits) << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}
inline void store(float* p, float value) { *p = value; }
inline void store(double* p, double value) { *p = value; }
// Round to nearest, ties to even; a NaN stays a NaN (rounding up its bits could make it infinite).
inline void store(BFloat16* p, float value) {
  uint32_t wide;
  memcpy(&wide, &value, sizeof wide);
  const uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
  const uint32_t quiet = (wide >> 16) | 0x40u;
  p->bits = static_cast<uint16_t>(value != value ? quiet : rounded);
}
#if defined(__FLT16_MANT_DIG__)
using Half = _Float16;
inline float load(const Half* p) { return static_cast<float>(*p); }
inline void store(Half* p, float value) { *p = static_cast<Half>(value); }
#define CPL_HAS_HALF 1
#endif

// What a kernel computes in: fp32 for the 16-bit types.
template <typename T>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};

// Calls f with a null pointer of the element type: dispatch(dtype, [&](auto* t) { ... });
template <typename F>
void dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(static_cast<float*>(nullptr));
    case DType::kFloat64:
      return f(static_cast<double*>(nullptr));
    case DType::kBFloat16:
      return f(static_cast<BFloat16*>(nullptr));
    case DType::kFloat16:
#if defined(CPL_HAS_HALF)
      return f(static_cast<Half*>(nullptr));
#else
      throw std::runtime_error("this compiler has no half-precision type; build with GCC >= 12 or Clang >= 15");
#endif
  }
  throw std::invalid_argument("unknown dtype code");
}

}  // namespace CPL_ISA
}  // namespace cpl
