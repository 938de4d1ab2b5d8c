// Forward over tiles (cuda_tile.h).
#pragma once

#include <cstdint>

#include "common/launch.h"
#include "layer_norm2d/cuda_plan.h"
#include "layer_norm2d/cuda_run.h"
#include "layer_norm2d/cuda_tile.h"
#include "layer_norm2d/math.h"
#include "layer_norm2d/op.h"

namespace cpl::cuda {
namespace {

template <bool kFull, typename T, int V, int K>
__device__ void forward_one(const LayerNorm2dForward& args, const Tiling& tiling, const Place<V>& place,
                            const Corner& corner, float (*sums)[kMaxTile], float* totals) {
  const int channels = static_cast<int>(args.size.channels);
  // The others still take part in the barriers.
  const bool inside = kFull || corner.pixel + place.across < args.size.pixels;
  const auto has = [&](int k) { return kFull || place.channel + k * place.step < channels; };
  Run<T, V> x[K];
  read_runs<kFull>(args.x, corner, place, channels, inside, x);

  // f(sum over all channels, pixel of the tile, its place among the statistics or -1), once for each pixel.
  const auto each_pixel = [&](const auto& f) {
    __syncthreads();
#pragma unroll 1
    for (int p = static_cast<int>(threadIdx.x); p < tiling.tile; p += static_cast<int>(blockDim.x)) {
      const bool there = corner.pixel + p < args.size.pixels;
      totals[p] = f(sum_warps(sums, p), there ? corner.batch * args.size.pixels + corner.pixel + p : int64_t{-1});
    }
    __syncthreads();
  };
  float sum[V] = {};
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += x[k][v];
    x[k].unpack_again();
  }
  sum_rows(sum, place.lanes);
  leave(sum, place, sums);
  each_pixel([&](float total, int64_t index) {
    const float mean = total / static_cast<float>(channels);
    if (index >= 0) static_cast<float*>(args.mean)[index] = mean;
    return mean;
  });
  float mean[V], square[V] = {};
  take(mean, place, totals);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (!has(k)) continue;  // zeros are not centred
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float centred = x[k][v] - mean[v];
      square[v] += centred * centred;
    }
    x[k].unpack_again();
  }
  sum_rows(square, place.lanes);
  leave(square, place, sums);
  each_pixel([&](float total, int64_t index) {
    const float rstd = gpu::layer_norm_rstd(total / static_cast<float>(channels), static_cast<float>(args.eps));
    if (index >= 0) static_cast<float*>(args.rstd)[index] = rstd;
    return rstd;
  });
  if (!inside) return;
  float rstd[V];
  take(rstd, place, totals);
  const bool center = args.center;
#pragma unroll
  for (int v = 0; v < V; ++v) mean[v] = center ? mean[v] : 0.0f;
  const float* weight = static_cast<const float*>(args.weight) + place.channel;
  const float* bias = args.bias == nullptr ? nullptr : static_cast<const float*>(args.bias) + place.channel;
  T* to = args.y.at<T>(corner.batch, place.channel, corner.pixel + place.across);
  const int64_t step = place.step * args.y.stride_channel;
  // Parameters of a few channels at a time: the compiler moves no load across a store, and each alone would be waited
  // for.
  constexpr int kAtOnce = K % 2 == 0 ? 2 : K;
#pragma unroll
  for (int first = 0; first < K; first += kAtOnce) {
    float w[kAtOnce], b[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      w[i] = b[i] = 0;
      if (!has(first + i)) continue;
      w[i] = weight[(first + i) * place.step];
      if (bias != nullptr) b[i] = bias[(first + i) * place.step];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i, to += step) {
      if (!has(first + i)) continue;
      float y[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        y[v] = gpu::layer_norm_scaled(x[first + i][v], mean[v], rstd[v], true) * w[i] + b[i];
      }
      Run<T, V>::write(to, y);
    }
  }
}

// The bounds leave 96 registers where twelve channels of fp32 need them, else 80, and 56 where a thread has few: left
// to itself, ptxas takes all it can get.
template <typename T, int V, int K>
__global__ void __launch_bounds__((sizeof(T) == 2 ? 12 : kMaxWarps<K, false>)*kWarp, K > 3 ? 2 : 3)
    forward_tile(LayerNorm2dForward args, Tiling tiling) {
  __shared__ __align__(16) float sums[kMaxWarps<K, false>][kMaxTile];
  __shared__ __align__(16) float totals[kMaxTile];
  const Place<V> place(tiling);
  const Corner corner(tiling, blockIdx.x);
  if (place.step * K == args.size.channels && corner.pixel + tiling.tile <= args.size.pixels) {
    forward_one<true, T, V, K>(args, tiling, place, corner, sums, totals);
  } else {
    forward_one<false, T, V, K>(args, tiling, place, corner, sums, totals);
  }
}

}  // namespace
}  // namespace cpl::cuda
