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

// K runs of a thread, zeros where there is no channel or pixel. kFull: all are there; that is most tiles, and asking
// for each run costs about as much as what is done with it.
template <bool kFull, typename T, int V, int K>
__device__ void read_runs(const ImageView& view, const Corner& corner, const Place<V>& place, int channels, bool inside,
                          Run<T, V> (&runs)[K]) {
  const T* from = view.at<const T>(corner.batch, place.channel, corner.pixel + place.across);
  const int64_t step = place.step * view.stride_channel;
#pragma unroll
  for (int k = 0; k < K; ++k, from += step) {
    if constexpr (!kFull) runs[k] = Run<T, V>();
    if (kFull || (inside && place.channel + k * place.step < channels)) runs[k].read(from);
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

}  // namespace
}  // namespace cpl::cuda
