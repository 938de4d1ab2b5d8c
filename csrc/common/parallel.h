// The parallel loop of the CPU kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "common/macros.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace cpl {
namespace CPL_ISA {

constexpr size_t kCacheLine = 64;

// Memory of one call, given back on every way out; aligned for vector loads.
class Scratch {
 public:
  explicit Scratch(size_t bytes)
      : data_(static_cast<char*>(std::aligned_alloc(kCacheLine, round_up(bytes + (bytes == 0))))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* data() const { return data_; }

  static size_t round_up(size_t bytes) { return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

 private:
  char* data_;
};

// body(i, scratch) for i in [0, count), each thread with `scratch_bytes` of its own. What a given i
// computes must not depend on the thread: results are the same bits at any number of threads.
template <typename Body>
void parallel_for(int64_t count, int threads, size_t scratch_bytes, const Body& body) {
  const size_t each = Scratch::round_up(scratch_bytes);
  if (threads > count) threads = static_cast<int>(count);
  if (threads < 1) threads = 1;
  const Scratch scratch(each * static_cast<size_t>(threads));  // before the threads start: it may throw
#if defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      char* own = scratch.data() + each * static_cast<size_t>(omp_get_thread_num());
#pragma omp for schedule(static)
      for (int64_t i = 0; i < count; ++i) body(i, own);
    }
    return;
  }
#endif
  for (int64_t i = 0; i < count; ++i) body(i, scratch.data());
}

}  // namespace CPL_ISA
}  // namespace cpl
