// Kernels with a bug planted in them, and their right twins: what the emulator must tell apart. Each is
// called as f(x, y, n, buggy, stream); y = the blocks' sums of x, the reverse of x, or a copy of x.
#pragma once

#include "common/launch.h"
#include "common/pyview.h"

namespace cpl::planted {

constexpr int kThreads = 64;  // two warps

inline unsigned blocks(int64_t n) { return static_cast<unsigned>((n + kThreads - 1) / kThreads); }

}  // namespace cpl::planted

// An entry that Python calls by `name`; launches name_kernel<buggy> on blocks of kThreads.
#define CPL_PLANTED(name, shared_bytes)                                                                       \
  void name(Address x, Address y, int64_t n, bool buggy, Address stream) {                                    \
    const float* in = static_cast<const float*>(pointer(x));                                                  \
    float* out = static_cast<float*>(pointer(y));                                                             \
    if (buggy) {                                                                                              \
      CPL_LAUNCH(name##_kernel<true>, blocks(n), dim3(kThreads), shared_bytes, pointer(stream), in, out, n);  \
    } else {                                                                                                  \
      CPL_LAUNCH(name##_kernel<false>, blocks(n), dim3(kThreads), shared_bytes, pointer(stream), in, out, n); \
    }                                                                                                         \
  }
