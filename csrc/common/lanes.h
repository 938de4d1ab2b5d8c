// A fixed number of lanes side by side (GCC and Clang vectors; one AVX-512 register, two of AVX2, four of SSE).
// For sums that must stay in registers over many rows, which the vectoriser does not manage.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace cpl {
namespace CPL_ISA {

template <typename A>
struct Lanes {
  static constexpr int64_t kCount = 64 / static_cast<int64_t>(sizeof(A));
  typedef A Vector __attribute__((vector_size(64)));

  static Vector load(const A* p) {  // any alignment
    Vector v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static double sum(const Vector& v) {
    double total = 0;
    for (int64_t i = 0; i < kCount; ++i) total += static_cast<double>(v[i]);
    return total;
  }
  static constexpr int64_t round_up(int64_t n) { return (n + kCount - 1) / kCount * kCount; }
};

}  // namespace CPL_ISA
}  // namespace cpl
