// Warp shuffles and votes. Lanes named in the mask meet; one that names a lane which never comes, or
// reads a lane that is not there, is an error. As on the device, a lane that left the kernel is not
// waited for.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda_host/block.h"

#define CUDA_HOST_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace cuda_host {

template <typename T>
T shuffle(const char* what, uint32_t mask, T value, int source, const char* file, int line) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "a shuffle moves 4 or 8 bytes");
  Lane lane{{what, file, line}, mask, source, false, 0, 0, 0, 0, nullptr};
  std::memcpy(&lane.bits, &value, sizeof value);
  meet(lane);
  std::memcpy(&value, &lane.received, sizeof value);
  return value;
}

inline Lane vote(const char* what, uint32_t mask, bool predicate, const char* file, int line) {
  Lane lane{{what, file, line}, mask, Lane::kOwn, predicate, 0, 0, 0, 0, nullptr};
  meet(lane);
  return lane;
}

inline int segment(int width) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) fail("shuffle width %d is not a power of two", width);
  return lane_id() & ~(width - 1);
}

template <typename T, typename Combine>
T reduce(const char* what, uint32_t mask, T value, const char* file, int line, Combine combine) {
  uint64_t all[32];
  Lane lane{{what, file, line}, mask, Lane::kOwn, false, 0, 0, 0, 0, all};
  std::memcpy(&lane.bits, &value, sizeof value);
  meet(lane);
  bool first = true;
  T total{};
  for (int i = 0; i < 32; ++i) {
    if ((lane.present >> i & 1u) == 0) continue;
    T other;
    std::memcpy(&other, all + i, sizeof other);
    total = first ? other : combine(total, other);
    first = false;
  }
  return total;
}

// The 64 bits of every lane, for instructions in which a whole warp takes part.
inline void gather(const char* what, uint64_t bits, uint64_t (&all)[32], CUDA_HOST_HERE) {
  Lane lane{{what, file, line}, 0xffffffffu, Lane::kOwn, false, bits, 0, 0, 0, all};
  meet(lane);
  if (lane.present != 0xffffffffu) fail("%s at %s:%d: lanes have left the kernel", what, file, line);
}

}  // namespace cuda_host

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_HOST_HERE) {
  const int from = cuda_host::segment(width) + (source & (width - 1));
  return cuda_host::shuffle("__shfl_sync", mask, value, from, file, line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_HOST_HERE) {
  const int from = cuda_host::lane_id() - static_cast<int>(delta);
  const bool own = from < cuda_host::segment(width);
  return cuda_host::shuffle("__shfl_up_sync", mask, value, own ? cuda_host::Lane::kOwn : from, file, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_HOST_HERE) {
  const int from = cuda_host::lane_id() + static_cast<int>(delta);
  const bool own = from >= cuda_host::segment(width) + width;
  return cuda_host::shuffle("__shfl_down_sync", mask, value, own ? cuda_host::Lane::kOwn : from, file, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_HOST_HERE) {
  const int from = cuda_host::lane_id() ^ lanes;
  const bool own = from >= cuda_host::segment(width) + width;
  return cuda_host::shuffle("__shfl_xor_sync", mask, value, own ? cuda_host::Lane::kOwn : from, file, line);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_HOST_HERE) {
  cuda_host::vote("__syncwarp", mask, false, file, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_HOST_HERE) {
  return cuda_host::vote("__ballot_sync", mask, predicate != 0, file, line).votes;
}
inline int __any_sync(unsigned mask, int predicate, CUDA_HOST_HERE) {
  return cuda_host::vote("__any_sync", mask, predicate != 0, file, line).votes != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_HOST_HERE) {
  return cuda_host::vote("__all_sync", mask, predicate == 0, file, line).votes == 0;
}

#define CUDA_HOST_REDUCE(name, type, expression)                                                                 \
  inline type name(unsigned mask, type value, CUDA_HOST_HERE) {                                                  \
    return cuda_host::reduce(#name, mask, value, file, line, [](type a, type b) -> type { return expression; }); \
  }
CUDA_HOST_REDUCE(__reduce_add_sync, unsigned, a + b)
CUDA_HOST_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
CUDA_HOST_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
CUDA_HOST_REDUCE(__reduce_min_sync, int, a < b ? a : b)
CUDA_HOST_REDUCE(__reduce_max_sync, int, a > b ? a : b)
CUDA_HOST_REDUCE(__reduce_and_sync, unsigned, a& b)
CUDA_HOST_REDUCE(__reduce_or_sync, unsigned, a | b)
CUDA_HOST_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
inline int __reduce_add_sync(unsigned mask, int value, CUDA_HOST_HERE) {
  return static_cast<int>(__reduce_add_sync(mask, static_cast<unsigned>(value), file, line));
}
#undef CUDA_HOST_REDUCE
#undef CUDA_HOST_HERE
