// Writing results past the caches: stores that neither read the lines they overwrite first nor push others out. Whoever
// wrote calls stream_fence() before another thread may read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/caches.h"
#include "common/macros.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace cpl {
namespace CPL_ISA {

constexpr size_t kStreamLine = 64;

// Whether a result of so many bytes is written past the caches: from `least` on, and where it is no small part of the
// last one. What stays in that is there for whoever reads it next, and a fresh page is in it already, as the system has
// just zeroed it: on a processor with 480 MiB of it, streamed results of 8 to 50 MiB took 1.3 to 2.5 times as long.
inline bool is_streamed(size_t bytes, size_t least) {
  const size_t part = last_level_cache() / 8;
  return bytes >= (least > part ? least : part);
}

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
