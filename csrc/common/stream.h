// Writing results that will not be read soon, past the cache.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/macros.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace cpl {
namespace CPL_ISA {

// memcpy whose stores do not first read the lines that they overwrite, nor push others out of the cache.
// Whoever wrote calls stream_fence() before another thread may read.
inline void stream_copy(void* target, const void* source, size_t bytes) {
#if defined(__SSE2__)
  char* to = static_cast<char*>(target);
  const char* from = static_cast<const char*>(source);
  const size_t head = (64 - reinterpret_cast<uintptr_t>(to) % 64) % 64;
  if (bytes >= head + 64) {
    memcpy(to, from, head);
    size_t at = head;
    for (; at + 64 <= bytes; at += 64) {
      for (size_t part = 0; part < 64; part += 16) {
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + at + part),
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at + part)));
      }
    }
    memcpy(to + at, from + at, bytes - at);
    return;
  }
#endif
  memcpy(target, source, bytes);
}

inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace CPL_ISA
}  // namespace cpl
