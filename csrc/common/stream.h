// Writing results that will not be read soon, past the cache: stores that neither read the lines they overwrite first
// nor push others out of the cache. Whoever wrote calls stream_fence() before another thread may read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/macros.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace cpl {
namespace CPL_ISA {

constexpr size_t kStreamLine = 64;

// kStreamLine bytes. The target is aligned to them, the source need not be.
inline void stream_line(void* target, const void* source) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(target), _mm512_loadu_si512(source));
#elif defined(__SSE2__)
  for (int part = 0; part < 4; ++part) {
    _mm_stream_si128(static_cast<__m128i*>(target) + part, _mm_loadu_si128(static_cast<const __m128i*>(source) + part));
  }
#else
  memcpy(target, source, kStreamLine);
#endif
}

// memcpy, of which all whole lines are streamed; any alignment.
inline void stream_copy(void* target, const void* source, size_t bytes) {
  char* const to = static_cast<char*>(target);
  const char* const from = static_cast<const char*>(source);
  size_t at = (kStreamLine - reinterpret_cast<uintptr_t>(to) % kStreamLine) % kStreamLine;
  if (at > bytes) at = bytes;
  memcpy(to, from, at);
  for (; at + kStreamLine <= bytes; at += kStreamLine) stream_line(to + at, from + at);
  memcpy(to + at, from + at, bytes - at);
}

inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace CPL_ISA
}  // namespace cpl
