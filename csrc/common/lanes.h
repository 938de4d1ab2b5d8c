// A fixed number of lanes side by side (GCC and Clang vectors; one AVX-512 register, two of AVX2, four of SSE).
// For sums that must stay in registers over many rows, which the vectoriser does not manage.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/dtype.h"
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
  static void set(A* p, const Vector& v) { memcpy(p, &v, sizeof v); }
  // From a narrower type, widened.
  template <typename T>
  static Vector widen(const T* p) {
    if constexpr (std::is_same_v<T, A>) {
      return load(p);
    } else {
      A values[kCount];
#pragma omp simd
      for (int64_t i = 0; i < kCount; ++i) values[i] = cpl::CPL_ISA::load(p + i);
      return load(values);
    }
  }
  // The first `count` lanes, rounded to T; all of them where count is beyond, none where it is negative.
  template <typename T>
  static void narrow(T* p, const Vector& v, int64_t count) {
    A values[kCount];
    memcpy(values, &v, sizeof v);
    if (count >= kCount) {
#pragma omp simd
      for (int64_t i = 0; i < kCount; ++i) store(p + i, values[i]);
    } else {
      for (int64_t i = 0; i < count; ++i) store(p + i, values[i]);
    }
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
