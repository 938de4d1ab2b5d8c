// Backward over tiles (cuda_tile.h).
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

// Parameters of a thread's channels, and the sums of their gradients over all tiles of its block.
template <int K>
struct Parameters {
  float weight[K], dweight[K] = {}, dbias[K] = {};
};

template <bool kFull, typename T, int V, int K>
__device__ void backward_one(const LayerNorm2dBackward& args, const Tiling& tiling, const Place<V>& place,
                             const Corner& corner, Parameters<K>& own, float (*sums)[kMaxWarps<K, true>][kMaxTile],
                             float (*totals)[kMaxTile]) {
  const int channels = static_cast<int>(args.size.channels);
  const bool inside = kFull || corner.pixel + place.across < args.size.pixels;
  Run<T, V> x[K], dy[K];
  read_runs<kFull>(args.x, corner, place, channels, inside, x);
  read_runs<kFull>(args.dy, corner, place, channels, inside, dy);
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
      g[v] += upstream * own.weight[k];
      gn[v] += upstream * own.weight[k] * scaled;
      own.dweight[k] += upstream * scaled;
      own.dbias[k] += upstream;
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
  if (!inside) return;
  take(g, place, totals[0]);
  take(gn, place, totals[1]);
  T* to = args.dx.at<T>(corner.batch, place.channel, corner.pixel + place.across);
  const int64_t step = place.step * args.dx.stride_channel;
#pragma unroll
  for (int k = 0; k < K; ++k, to += step) {
    if (!kFull && place.channel + k * place.step >= channels) continue;
    float dx[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float h = gpu::layer_norm_scaled(x[k][v], mean[v], rstd[v], true);
      dx[v] = gpu::layer_norm_dx(dy[k][v] * own.weight[k], h, rstd[v], g[v], gn[v]);
    }
    Run<T, V>::write(to, dx);
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
  Parameters<K> own;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int c = place.channel + k * place.step;
    own.weight[k] = c < channels ? static_cast<const float*>(args.weight)[c] : 0.0f;
  }
  Corner corner(tiling, blockIdx.x);
  const Corner stride(tiling, gridDim.x);
  for (unsigned tile = blockIdx.x; tile < tiling.tiles; tile += gridDim.x, corner.advance(tiling, stride)) {
    forget(place.step);  // or offsets of all K channels in three images stay from tile to tile
    if (place.step * K == channels && corner.pixel + tiling.tile <= args.size.pixels) {
      backward_one<true, T>(args, tiling, place, corner, own, sums, totals);
    } else {
      backward_one<false, T>(args, tiling, place, corner, own, sums, totals);
    }
  }
  float* const row = partial + static_cast<int64_t>(blockIdx.x) * 2 * channels;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    for (int offset = place.lanes / 2; offset > 0; offset /= 2) {
      own.dweight[k] += __shfl_xor_sync(0xffffffffu, own.dweight[k], offset);
      own.dbias[k] += __shfl_xor_sync(0xffffffffu, own.dbias[k], offset);
    }
    const int c = place.channel + k * place.step;
    if (place.across == 0 && c < channels) row[c] = own.dweight[k], row[channels + c] = own.dbias[k];
  }
}

}  // namespace
}  // namespace cpl::cuda
