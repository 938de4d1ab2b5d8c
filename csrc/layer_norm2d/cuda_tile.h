// Planar images in 16 and 32 bits: a block takes a tile of neighbouring pixels with all of their channels into its
// registers, so that an image is read once. Lanes lie along the pixels first: runs beside each other make rows of up to
// 128 bytes, and 32 / lanes rows are a warp's. Sums over channels go through a thread's own, then the warp's rows, then
// the warps, always in this order.
#pragma once

#include <cstdint>

#include "common/launch.h"
#include "layer_norm2d/cuda_plan.h"
#include "layer_norm2d/cuda_run.h"
#include "layer_norm2d/math.h"
#include "layer_norm2d/op.h"

namespace cpl::cuda {
namespace {

// Where a thread stands in its block's tile: runs of V pixels of channels `channel`, `channel` + `step`, ...
template <int V>
struct Place {
  int lanes;    // runs beside each other
  int across;   // pixels before this thread's run
  int channel;  // its first
  int step;     // rows of the block
  __device__ explicit Place(const Tiling& t)
      : lanes(1 << t.lane_bits),
        across((static_cast<int>(threadIdx.x) & (lanes - 1)) * V),
        channel(static_cast<int>(threadIdx.x) >> t.lane_bits),
        step(static_cast<int>(blockDim.x) >> t.lane_bits) {}
};

struct Corner {
  int64_t batch, pixel;  // the tile's first
  __device__ Corner(const Tiling& t, unsigned tile)
      : batch(tile / t.tiles_per_image), pixel(static_cast<int64_t>(tile % t.tiles_per_image) * t.tile) {}
  // On by so many tiles, without a division.
  __device__ void advance(const Tiling& t, const Corner& tiles) {
    const int64_t image = static_cast<int64_t>(t.tiles_per_image) * t.tile;
    batch += tiles.batch, pixel += tiles.pixel;
    if (pixel >= image) ++batch, pixel -= image;
  }
};

// K runs of a thread, zeros where there is no channel or pixel. Most tiles are full, and asking for each run costs more
// than reading it.
template <typename T, int V, int K>
__device__ void read_runs(const ImageView& view, const Corner& corner, const Place<V>& place, int channels, bool inside,
                          bool full, Run<T, V> (&runs)[K]) {
  const T* from = view.at<const T>(corner.batch, place.channel, corner.pixel + place.across);
  const int64_t step = place.step * view.stride_channel;
  if (full) {
#pragma unroll
    for (int k = 0; k < K; ++k, from += step) runs[k].read(from);
    return;
  }
#pragma unroll
  for (int k = 0; k < K; ++k, from += step) {
    runs[k] = Run<T, V>();
    if (inside && place.channel + k * place.step < channels) runs[k].read(from);
  }
}

// Sums over the warp's rows; every lane gets those of its pixels.
template <int V>
__device__ void sum_rows(float (&values)[V], int lanes) {
  for (int offset = kWarp / 2; offset >= lanes; offset /= 2) {
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] += __shfl_xor_sync(0xffffffffu, values[v], offset);
  }
}

// The first row of each warp leaves its sums for the block.
template <int V>
__device__ void leave(const float (&values)[V], const Place<V>& place, float (*sums)[kMaxTile]) {
  if (static_cast<int>(threadIdx.x % kWarp) >= place.lanes) return;
#pragma unroll
  for (int v = 0; v < V; ++v) sums[threadIdx.x / kWarp][place.across + v] = values[v];
}

__device__ inline float sum_warps(const float (*sums)[kMaxTile], int pixel) {
  float sum = 0;
#pragma unroll 4
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += sums[warp][pixel];
  return sum;
}

template <int V>
__device__ void take(float (&values)[V], const Place<V>& place, const float* totals) {
#pragma unroll
  for (int v = 0; v < V; ++v) values[v] = totals[place.across + v];
}

template <typename T, int V, int K>
__global__ void __launch_bounds__(kMaxWarps<K, false>* kWarp, sizeof(T) == 4 && K > 3 ? 2 : 3)
    forward_tile(LayerNorm2dForward args, Tiling tiling) {
  __shared__ __align__(16) float sums[kMaxWarps<K, false>][kMaxTile];
  __shared__ __align__(16) float totals[kMaxTile];
  const int channels = static_cast<int>(args.size.channels);
  const Place<V> place(tiling);
  const Corner corner(tiling, blockIdx.x);
  const bool inside = corner.pixel + place.across < args.size.pixels;  // the others still take part in the barriers
  const bool full = place.step * K == channels && corner.pixel + tiling.tile <= args.size.pixels;
  Run<T, V> x[K];
  read_runs(args.x, corner, place, channels, inside, full, x);

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
    if (place.channel + k * place.step >= channels) continue;  // zeros are not centred
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
      const int later = (first + i) * place.step;
      const bool there = place.channel + later < channels;
      w[i] = there ? weight[later] : 0.0f;
      b[i] = there && bias != nullptr ? bias[later] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i, to += step) {
      if (place.channel + (first + i) * place.step >= channels) continue;
      float y[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        y[v] = gpu::layer_norm_scaled(x[first + i][v], mean[v], rstd[v], true) * w[i] + b[i];
      }
      Run<T, V>::write(to, y);
    }
  }
}

// partial: [gridDim.x, 2, C]; every entry is written. A thread keeps the sums of its channels over all of its block's
// tiles, walked in order.
template <typename T, int V, int K>
__global__ void __launch_bounds__(kMaxWarps<K, true>* kWarp, K == 2 ? 3 : 2)
    backward_tile(LayerNorm2dBackward args, Tiling tiling, float* partial) {
  __shared__ __align__(16) float sums[2][kMaxWarps<K, true>][kMaxTile];
  __shared__ __align__(16) float totals[2][kMaxTile];
  const int channels = static_cast<int>(args.size.channels);
  Place<V> place(tiling);
  float weight[K], dweight[K] = {}, dbias[K] = {};
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int c = place.channel + k * place.step;
    weight[k] = c < channels ? static_cast<const float*>(args.weight)[c] : 0.0f;
  }
  Corner corner(tiling, blockIdx.x);
  const Corner stride(tiling, gridDim.x);
  for (unsigned tile = blockIdx.x; tile < tiling.tiles; tile += gridDim.x, corner.advance(tiling, stride)) {
    forget(place.step);  // or offsets of all K channels in three images stay from tile to tile
    const bool inside = corner.pixel + place.across < args.size.pixels;
    const bool full = place.step * K == channels && corner.pixel + tiling.tile <= args.size.pixels;
    Run<T, V> x[K], dy[K];
    read_runs(args.x, corner, place, channels, inside, full, x);
    read_runs(args.dy, corner, place, channels, inside, full, dy);
    float mean[V] = {}, rstd[V] = {};
    if (inside) {
      const int64_t index = corner.batch * args.size.pixels + corner.pixel + place.across;
      read_floats(static_cast<const float*>(args.mean) + index, mean);
      read_floats(static_cast<const float*>(args.rstd) + index, rstd);
    }
    // What is not there has dy = 0 and adds nothing.
    float g[V] = {}, gn[V] = {}, shift[V];
#pragma unroll
    for (int v = 0; v < V; ++v) shift[v] = args.center ? mean[v] : 0.0f;
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float upstream = dy[k][v], scaled = gpu::layer_norm_scaled(x[k][v], shift[v], rstd[v], true);
        g[v] += upstream * weight[k];
        gn[v] += upstream * weight[k] * scaled;
        dweight[k] += upstream * scaled;
        dbias[k] += upstream;
      }
      x[k].unpack_again(), dy[k].unpack_again();
    }
    sum_rows(g, place.lanes);
    sum_rows(gn, place.lanes);
    leave(g, place, sums[0]);
    leave(gn, place, sums[1]);
    __syncthreads();
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < 2 * tiling.tile; i += static_cast<int>(blockDim.x)) {
      const int which = i >= tiling.tile, p = i - which * tiling.tile;
      totals[which][p] = which == 0 && !args.center ? 0.0f : sum_warps(sums[which], p) / static_cast<float>(channels);
    }
    __syncthreads();
    if (!inside) continue;
    take(g, place, totals[0]);
    take(gn, place, totals[1]);
    T* to = args.dx.at<T>(corner.batch, place.channel, corner.pixel + place.across);
    const int64_t step = place.step * args.dx.stride_channel;
#pragma unroll
    for (int k = 0; k < K; ++k, to += step) {
      if (place.channel + k * place.step >= channels) continue;
      float dx[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float h = gpu::layer_norm_scaled(x[k][v], mean[v], rstd[v], true);
        dx[v] = gpu::layer_norm_dx(dy[k][v] * weight[k], h, rstd[v], g[v], gn[v]);
      }
      Run<T, V>::write(to, dx);
    }
  }
  float* const row = partial + static_cast<int64_t>(blockIdx.x) * 2 * channels;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    for (int offset = place.lanes / 2; offset > 0; offset /= 2) {
      dweight[k] += __shfl_xor_sync(0xffffffffu, dweight[k], offset);
      dbias[k] += __shfl_xor_sync(0xffffffffu, dbias[k], offset);
    }
    const int c = place.channel + k * place.step;
    if (place.across == 0 && c < channels) row[c] = dweight[k], row[channels + c] = dbias[k];
  }
}

}  // namespace
}  // namespace cpl::cuda
