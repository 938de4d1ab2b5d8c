// One element of the gradient, as the kernels see it that read x and dy once for the sums and once for dx.
#pragma once

#include <cstdint>

#include "common/launch.h"
#include "layer_norm2d/math.h"
#include "layer_norm2d/op.h"

namespace cpl::cuda {
namespace {

template <typename A>
struct Gradient {
  A upstream;    // dy
  A g;           // dy * weight
  A h;           // normalised x
  A normalised;  // what weight multiplied
};

template <typename T, typename A>
__device__ Gradient<A> gradient_at(const LayerNorm2dBackward& args, int64_t batch, int64_t c, int64_t pixel, A mean,
                                   A rstd) {
  const A upstream = load(args.dy.at<const T>(batch, c, pixel));
  const A x = load(args.x.at<const T>(batch, c, pixel));
  const A h = gpu::layer_norm_scaled(x, mean, rstd, true);
  return {upstream, upstream * static_cast<const A*>(args.weight)[c], h,
          gpu::layer_norm_scaled(x, mean, rstd, args.center)};
}

}  // namespace
}  // namespace cpl::cuda
