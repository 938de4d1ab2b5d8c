// Channels-last images (channel stride 1): a warp takes a pixel, its lanes the channels.
#pragma once

#include <cstdint>

#include "common/launch.h"
#include "layer_norm2d/cuda_gradient.h"
#include "layer_norm2d/cuda_plan.h"
#include "layer_norm2d/math.h"
#include "layer_norm2d/op.h"

namespace cpl::cuda {
namespace {

template <typename T, typename A>
__global__ void __launch_bounds__(kWarp* kWarps) forward_last(LayerNorm2dForward args) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  if (index >= args.size.batch * args.size.pixels) return;  // a whole warp leaves: no barrier follows
  const int64_t batch = index / args.size.pixels, pixel = index % args.size.pixels;
  const int64_t channels = args.size.channels;

  A sum = 0;
  for (int64_t c = threadIdx.x; c < channels; c += kWarp) sum += load(args.x.at<const T>(batch, c, pixel));
  const A mean = warp_sum(sum) / static_cast<A>(channels);
  A square = 0;
  for (int64_t c = threadIdx.x; c < channels; c += kWarp) {
    const A centred = load(args.x.at<const T>(batch, c, pixel)) - mean;
    square += centred * centred;
  }
  const A rstd = gpu::layer_norm_rstd(warp_sum(square) / static_cast<A>(channels), static_cast<A>(args.eps));
  const A* weight = static_cast<const A*>(args.weight);
  const A* bias = static_cast<const A*>(args.bias);
  for (int64_t c = threadIdx.x; c < channels; c += kWarp) {
    const A n =
        gpu::layer_norm_scaled(static_cast<A>(load(args.x.at<const T>(batch, c, pixel))), mean, rstd, args.center);
    store(args.y.at<T>(batch, c, pixel), n * weight[c] + (bias != nullptr ? bias[c] : A(0)));
  }
  if (threadIdx.x == 0) {
    static_cast<A*>(args.mean)[index] = mean;
    static_cast<A*>(args.rstd)[index] = rstd;
  }
}

// Rows of sums, one per warp, in global memory (L1 holds them while the block walks its pixels); each
// entry is touched by one lane only.
template <typename T, typename A>
__global__ void __launch_bounds__(kWarp* kWarps) backward_last(LayerNorm2dBackward args, A* partial) {
  const int64_t channels = args.size.channels;
  A* row = partial + (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y) * 2 * channels;
  for (int64_t c = threadIdx.x; c < channels; c += kWarp) row[c] = row[channels + c] = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
       index < args.size.batch * args.size.pixels; index += stride) {
    const int64_t batch = index / args.size.pixels, pixel = index % args.size.pixels;
    const A mean = static_cast<const A*>(args.mean)[index];
    const A rstd = static_cast<const A*>(args.rstd)[index];
    A sum_g = 0, sum_gn = 0;
    // Unrolled, the loops take up to 100 registers: four blocks no longer fit, and fp64 spills on sm_86.
#pragma unroll 1
    for (int64_t c = threadIdx.x; c < channels; c += kWarp) {
      const Gradient<A> at = gradient_at<T, A>(args, batch, c, pixel, mean, rstd);
      sum_g += at.g;
      sum_gn += at.g * at.normalised;
      row[c] += at.upstream * at.normalised;
      row[channels + c] += at.upstream;
    }
    const A mean_g = args.center ? warp_sum(sum_g) / static_cast<A>(channels) : A(0);
    const A mean_gn = warp_sum(sum_gn) / static_cast<A>(channels);
    for (int64_t c = threadIdx.x; c < channels; c += kWarp) {
      const Gradient<A> at = gradient_at<T, A>(args, batch, c, pixel, mean, rstd);
      store(args.dx.at<T>(batch, c, pixel), gpu::layer_norm_dx(at.g, at.h, rstd, mean_g, mean_gn));
    }
  }
}

}  // namespace
}  // namespace cpl::cuda
