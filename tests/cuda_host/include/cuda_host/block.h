// A block of threads on the CPU: launch, barrier, and the meeting point of a warp's lanes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "cuda_host/vectors.h"

// Of the thread that runs now; the scheduler sets them at every switch.
inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_host {

constexpr size_t kMaxShared = 48 * 1024;        // without asking
constexpr size_t kMaxSharedOptin = 227 * 1024;  // after cudaFuncSetAttribute, on sm_90

// Prints "cuda_host: <what>" with kernel, block and thread, and ends the process.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Where a barrier or warp function was called: threads that meet must come from one place.
struct Site {
  const char* what;
  const char* file;
  int line;
};

// Declares that static shared memory stands at this place of the source.
struct SharedRecord {
  SharedRecord(const char* file, int line);
};

void* dynamic_shared();
void allow_dynamic_shared(const void* kernel, size_t bytes);

// Runs body(context) once per thread of every block.
void run_grid(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*),
              void* context);

// Waits for every thread of the block; gives how many brought `predicate`.
int barrier(const Site& site, bool predicate);

// What a lane brings to its warp's meeting, and what it takes home.
struct Lane {
  Site site;
  uint32_t mask;
  int source;  // the lane whose bits it wants, or kOwn
  bool predicate;
  uint64_t bits;
  uint64_t received;  // bits of `source`
  uint32_t votes;     // lanes of the mask that brought `predicate`
  uint32_t present;   // lanes of the mask that had not left the kernel
  uint64_t* all;      // [32], null if not wanted: bits of every lane in `present`
  static constexpr int kOwn = -1;
};
void meet(Lane& lane);
int lane_id();

template <typename... P, typename... Q>
void launch(const char* name, dim3 grid, dim3 block, size_t shared_bytes, void* /*stream*/, void (*kernel)(P...),
            Q&&... args) {
  // As on the device: the arguments are copied once, at the launch, and each thread gets its own copy.
  auto call = [kernel, copies = std::tuple<std::decay_t<P>...>(static_cast<Q&&>(args)...)] {
    std::apply(kernel, copies);
  };
  using Call = decltype(call);
  run_grid(
      name, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
      [](void* context) { (*static_cast<Call*>(context))(); }, &call);
}

}  // namespace cuda_host

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_host::barrier({"__syncthreads", file, line}, false);
}
inline int __syncthreads_count(int predicate, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return cuda_host::barrier({"__syncthreads_count", file, line}, predicate != 0);
}
inline int __syncthreads_or(int predicate, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return cuda_host::barrier({"__syncthreads_or", file, line}, predicate != 0) > 0;
}
inline int __syncthreads_and(int predicate, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return cuda_host::barrier({"__syncthreads_and", file, line}, predicate == 0) == 0;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __trap() { cuda_host::fail("__trap()"); }
