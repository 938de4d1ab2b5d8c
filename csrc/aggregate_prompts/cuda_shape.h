// What the CUDA kernels of aggregate_prompts share: how the work is cut up, and weights of any dtype.
#pragma once

#include <cstdint>

#include "aggregate_prompts/op.h"
#include "common/launch.h"

namespace cpl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
// Elements of a thread, all at once in its registers: a resize leaves no room for more than one.
template <bool kResize>
constexpr int kPerThread = kResize ? 1 : 4;
template <bool kResize>
constexpr int kTileBits = kResize ? 8 : 10;  // 2^kTileBits = kThreads * kPerThread
static_assert(kThreads * kPerThread<true> == 1 << kTileBits<true> &&
              kThreads * kPerThread<false> == 1 << kTileBits<false>);

// What a kernel is told of the sizes. Without a resize the planes of a prompt are one long row.
struct Shape {
  int64_t batch, prompts, area, source;  // area = H * W, source = S_h * S_w
  unsigned chosen, channels;
  int tile_bits;                                   // a block takes 2^tile_bits elements
  int height, width, source_height, source_width;  // of a resize only

  int64_t results() const { return static_cast<int64_t>(channels) * tiles(area); }
  int64_t planes() const { return static_cast<int64_t>(channels) * tiles(source); }
  __host__ __device__ unsigned tiles(int64_t elements) const {
    return static_cast<unsigned>((elements + (int64_t{1} << tile_bits) - 1) >> tile_bits);
  }
};

template <typename A>
__device__ A weight_at(const void* weights, DType dtype, int64_t place) {
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<A>(load(static_cast<const float*>(weights) + place));
    case DType::kFloat64:
      return static_cast<A>(load(static_cast<const double*>(weights) + place));
    case DType::kBFloat16:
      return static_cast<A>(load(static_cast<const __nv_bfloat16*>(weights) + place));
    default:
      return static_cast<A>(load(static_cast<const __half*>(weights) + place));
  }
}

__device__ void store_weight(void* weights, DType dtype, int64_t place, double value) {
  switch (dtype) {
    case DType::kFloat32:
      return store(static_cast<float*>(weights) + place, static_cast<float>(value));
    case DType::kFloat64:
      return store(static_cast<double*>(weights) + place, value);
    case DType::kBFloat16:
      return store(static_cast<__nv_bfloat16*>(weights) + place, static_cast<float>(value));
    default:
      return store(static_cast<__half*>(weights) + place, static_cast<float>(value));
  }
}

}  // namespace
}  // namespace cpl::cuda
