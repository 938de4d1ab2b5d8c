// A register of the instruction set, for blocks that must fit the registers there are (Lanes<A> takes several of AVX2).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/dtype.h"
#include "common/macros.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace cpl {
namespace CPL_ISA {

#if defined(__AVX512F__)
constexpr int64_t kRegisterBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int64_t kRegisterBytes = 32, kRegisters = 16;
#else
constexpr int64_t kRegisterBytes = 16, kRegisters = 16;
#endif

// Fewer than kCapacity <= 64 bytes, in pieces that the compiler need not look for.
template <int64_t kCapacity>
inline void copy_few(void* target, const void* source, int64_t bytes) {
  char* to = static_cast<char*>(target);
  const char* from = static_cast<const char*>(source);
  const auto piece = [&](auto size) {
    constexpr int64_t kSize = decltype(size)::value;
    if constexpr (kSize < kCapacity) {
      if ((bytes & kSize) == 0) return;
      memcpy(to, from, kSize);
      to += kSize, from += kSize;
    }
  };
  piece(std::integral_constant<int64_t, 32>());
  piece(std::integral_constant<int64_t, 16>());
  piece(std::integral_constant<int64_t, 8>());
  piece(std::integral_constant<int64_t, 4>());
  piece(std::integral_constant<int64_t, 2>());
}

// A: float or double.
template <typename A>
struct Register {
  static constexpr int64_t kCount = kRegisterBytes / static_cast<int64_t>(sizeof(A));
  typedef A Vector __attribute__((vector_size(kRegisterBytes)));

  static constexpr int64_t round_up(int64_t n) { return (n + kCount - 1) / kCount * kCount; }
  static Vector load(const A* p) {  // any alignment
    Vector v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static void set(A* p, const Vector& v) { memcpy(p, &v, sizeof v); }

  // kCount elements, widened.
  template <typename T>
  static Vector widen(const T* p) {
    if constexpr (std::is_same_v<T, A>) {
      return load(p);
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      Narrow bits;
      memcpy(&bits, p, sizeof bits);
      return reinterpret_cast<Vector>(__builtin_convertvector(bits, Bits) << 16);
    } else {
#if defined(__AVX512F__)
      return reinterpret_cast<Vector>(
          _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
      return reinterpret_cast<Vector>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
      A values[kCount];
      for (int64_t i = 0; i < kCount; ++i) values[i] = cpl::CPL_ISA::load(p + i);
      return load(values);
#endif
    }
  }
  // Rounded to T, kCount elements.
  template <typename T>
  static void narrow(T* p, const Vector& v) {
    if constexpr (std::is_same_v<T, A>) {
      set(p, v);
    } else if constexpr (std::is_same_v<T, BFloat16>) {  // as store() of one element
      const Bits wide = reinterpret_cast<Bits>(v);
      const Bits rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16, quiet = (wide >> 16) | 0x40u;
      const Narrow bits = __builtin_convertvector(v != v ? quiet : rounded, Narrow);
      memcpy(p, &bits, sizeof bits);
    } else {
#if defined(__AVX512F__)
      const __m256i bits = _mm512_maskz_cvtps_ph(0xffff, reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bits);
#elif defined(__F16C__)
      const __m128i bits = _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bits);
#else
      A values[kCount];
      set(values, v);
      for (int64_t i = 0; i < kCount; ++i) store(p + i, values[i]);
#endif
    }
  }
  // As above for fewer than kCount elements: the rest is read as zeros, and not written.
  template <typename T>
  static Vector widen_few(const T* p, int64_t count) {
#if defined(__AVX512F__)
    const unsigned mask = (1u << count) - 1;
    if constexpr (std::is_same_v<T, float>) {
      return reinterpret_cast<Vector>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p));
    } else if constexpr (std::is_same_v<T, double>) {
      return reinterpret_cast<Vector>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p));
    } else {
      const __m256i few = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), p);
      T values[kCount];
      memcpy(values, &few, sizeof few);
      return widen(values);
    }
#else
    T values[kCount] = {};
    copy_few<sizeof values>(values, p, count * static_cast<int64_t>(sizeof(T)));
    return widen(values);
#endif
  }
  template <typename T>
  static void narrow_few(T* p, const Vector& v, int64_t count) {
#if defined(__AVX512F__)
    const unsigned mask = (1u << count) - 1;
    if constexpr (std::is_same_v<T, float>) {
      return _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), reinterpret_cast<__m512>(v));
    } else if constexpr (std::is_same_v<T, double>) {
      return _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), reinterpret_cast<__m512d>(v));
    } else {
      T values[kCount];
      narrow(values, v);
      __m256i few;
      memcpy(&few, values, sizeof few);
      return _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(mask), few);
    }
#else
    T values[kCount];
    narrow(values, v);
    copy_few<sizeof values>(p, values, count * static_cast<int64_t>(sizeof(T)));
#endif
  }
  // In a tree, in fp64.
  static double sum(const Vector& v) { return sum_halves<kCount / 2>(reinterpret_cast<const A*>(&v)); }

 private:
  // Adds the upper half of 2 * kHalf numbers to the lower half, and so on until one is left.
  template <int64_t kHalf, typename From>
  static double sum_halves(const From* values) {
    if constexpr (kHalf == 1) {
      return static_cast<double>(values[0]) + static_cast<double>(values[1]);
    } else {
      typedef From Half __attribute__((vector_size(kHalf * static_cast<int64_t>(sizeof(From)))));
      typedef double Wide __attribute__((vector_size(kHalf * static_cast<int64_t>(sizeof(double)))));
      Half low, high;
      memcpy(&low, values, sizeof low);
      memcpy(&high, values + kHalf, sizeof high);
      const Wide both = __builtin_convertvector(low, Wide) + __builtin_convertvector(high, Wide);
      return sum_halves<kHalf / 2>(reinterpret_cast<const double*>(&both));
    }
  }
  typedef uint32_t Bits __attribute__((vector_size(kRegisterBytes)));
  typedef uint16_t Narrow __attribute__((vector_size(kRegisterBytes / 2)));
};

}  // namespace CPL_ISA
}  // namespace cpl
