// Memory pages under large results.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/macros.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cpl {
namespace CPL_ISA {

// Asks for huge pages under a result that is about to be written whole. A block of this size often comes fresh
// from the kernel, which hands it over page by page at the first touch: 4 KiB at a time, that takes longer than
// writing it. Only advice: nothing depends on its being followed.
inline void prefer_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096, kHuge = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (bytes >= 2 * kHuge) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace CPL_ISA
}  // namespace cpl
