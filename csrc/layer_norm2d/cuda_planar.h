// Planar images of any kind: fp64, and more channels than fit a block's registers (cuda_tile.h has the rest). A block
// takes kPixels neighbouring pixels; its threads are laid out as kPixels x kGroups, group g summing channels g,
// g + kGroups, ... Neighbouring threads read neighbouring addresses; the second and third look at the tile come from
// L1 or L2.
#pragma once

#include <cstdint>

#include "common/launch.h"
#include "layer_norm2d/cuda_gradient.h"
#include "layer_norm2d/cuda_plan.h"
#include "layer_norm2d/math.h"
#include "layer_norm2d/op.h"

namespace cpl::cuda {
namespace {

// Sum over the kGroups threads that share a pixel; every one of them gets it. All threads of the
// block must call it.
template <typename A>
__device__ A sum_over_groups(A value, A (*shared)[kPixels]) {
  __syncthreads();  // whoever still reads the last sum must be done
  shared[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  A sum = 0;
  for (int g = 0; g < kGroups; ++g) sum += shared[g][threadIdx.x];
  return sum;
}

template <typename T, typename A>
__global__ void __launch_bounds__(kPixels* kGroups) forward_planar(LayerNorm2dForward args) {
  __shared__ A shared[kGroups][kPixels];
  const int64_t tiles_per_image = (args.size.pixels + kPixels - 1) / kPixels;
  const int64_t batch = blockIdx.x / tiles_per_image;
  const int64_t pixel = blockIdx.x % tiles_per_image * kPixels + threadIdx.x;
  const bool inside = pixel < args.size.pixels;  // the others still take part in the barriers
  const int64_t channels = args.size.channels;

  A sum = 0;
  for (int64_t c = threadIdx.y; inside && c < channels; c += kGroups) {
    sum += load(args.x.at<const T>(batch, c, pixel));
  }
  const A mean = sum_over_groups(sum, shared) / static_cast<A>(channels);
  A square = 0;
  for (int64_t c = threadIdx.y; inside && c < channels; c += kGroups) {
    const A centred = load(args.x.at<const T>(batch, c, pixel)) - mean;
    square += centred * centred;
  }
  const A variance = sum_over_groups(square, shared) / static_cast<A>(channels);
  if (!inside) return;
  const A rstd = gpu::layer_norm_rstd(variance, static_cast<A>(args.eps));
  const A* weight = static_cast<const A*>(args.weight);
  const A* bias = static_cast<const A*>(args.bias);
  for (int64_t c = threadIdx.y; c < channels; c += kGroups) {
    const A n =
        gpu::layer_norm_scaled(static_cast<A>(load(args.x.at<const T>(batch, c, pixel))), mean, rstd, args.center);
    store(args.y.at<T>(batch, c, pixel), n * weight[c] + (bias != nullptr ? bias[c] : A(0)));
  }
  if (threadIdx.y == 0) {
    static_cast<A*>(args.mean)[batch * args.size.pixels + pixel] = mean;
    static_cast<A*>(args.rstd)[batch * args.size.pixels + pixel] = rstd;
  }
}

// partial: [gridDim.x, 2, C]; every entry is written, whatever was there before.
template <typename T, typename A>
__global__ void __launch_bounds__(kPixels* kGroups) backward_planar(LayerNorm2dBackward args, A* partial) {
  __shared__ A shared[kGroups][kPixels];
  __shared__ A halves[kGroups][2][2];  // [group][dweight, dbias][which of the group's two warps]
  const int64_t channels = args.size.channels;
  const int64_t tiles_per_image = (args.size.pixels + kPixels - 1) / kPixels;
  const int64_t tile_count = args.size.batch * tiles_per_image;
  A* row = partial + blockIdx.x * 2 * channels;
  // Entry c belongs to thread 0 of group c % kGroups for the whole kernel: no race, a fixed order.
  if (threadIdx.x == 0) {
    for (int64_t c = threadIdx.y; c < channels; c += kGroups) row[c] = row[channels + c] = 0;
  }
  for (int64_t tile = blockIdx.x; tile < tile_count; tile += gridDim.x) {
    const int64_t batch = tile / tiles_per_image;
    const int64_t pixel = tile % tiles_per_image * kPixels + threadIdx.x;
    const bool inside = pixel < args.size.pixels;
    const A mean = inside ? static_cast<const A*>(args.mean)[batch * args.size.pixels + pixel] : A(0);
    const A rstd = inside ? static_cast<const A*>(args.rstd)[batch * args.size.pixels + pixel] : A(0);
    A sum_g = 0, sum_gn = 0;
    // Every thread runs the same number of rounds, because of the barriers inside.
    for (int64_t first = 0; first < channels; first += kGroups) {
      const int64_t c = first + threadIdx.y;
      A dweight = 0, dbias = 0;
      if (inside && c < channels) {
        const Gradient<A> at = gradient_at<T, A>(args, batch, c, pixel, mean, rstd);
        sum_g += at.g;
        sum_gn += at.g * at.normalised;
        dweight = at.upstream * at.normalised;
        dbias = at.upstream;
      }
      dweight = warp_sum(dweight);
      dbias = warp_sum(dbias);
      if (threadIdx.x % kWarp == 0) {
        halves[threadIdx.y][0][threadIdx.x / kWarp] = dweight;
        halves[threadIdx.y][1][threadIdx.x / kWarp] = dbias;
      }
      __syncthreads();
      if (threadIdx.x == 0 && c < channels) {
        row[c] += halves[threadIdx.y][0][0] + halves[threadIdx.y][0][1];
        row[channels + c] += halves[threadIdx.y][1][0] + halves[threadIdx.y][1][1];
      }
      __syncthreads();
    }
    const A mean_g = args.center ? sum_over_groups(sum_g, shared) / static_cast<A>(channels) : A(0);
    const A mean_gn = sum_over_groups(sum_gn, shared) / static_cast<A>(channels);
    for (int64_t c = threadIdx.y; inside && c < channels; c += kGroups) {
      const Gradient<A> at = gradient_at<T, A>(args, batch, c, pixel, mean, rstd);
      store(args.dx.at<T>(batch, c, pixel), gpu::layer_norm_dx(at.g, at.h, rstd, mean_g, mean_gn));
    }
  }
}

}  // namespace
}  // namespace cpl::cuda
