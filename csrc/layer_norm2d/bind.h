// layer_norm2d as Python calls it.
#pragma once

#include "common/pyview.h"
#include "layer_norm2d/op.h"

namespace cpl::bind {

inline LayerNorm2dForward layer_norm2d_forward_args(ImageView x, ImageView y, Address weight, Address bias,
                                                    Address mean, Address rstd, int64_t batch, int64_t channels,
                                                    int64_t pixels, double eps, bool center, int dtype) {
  return {x,   y,      pointer(weight),          pointer(bias), pointer(mean), pointer(rstd), {batch, channels, pixels},
          eps, center, static_cast<DType>(dtype)};
}

inline LayerNorm2dBackward layer_norm2d_backward_args(ImageView dy, ImageView x, ImageView dx, Address weight,
                                                      Address mean, Address rstd, Address dweight, Address dbias,
                                                      int64_t batch, int64_t channels, int64_t pixels, bool center,
                                                      int dtype, Address bias = 0, ImageView y = {}) {
  return {dy,
          x,
          dx,
          pointer(weight),
          pointer(mean),
          pointer(rstd),
          pointer(dweight),
          pointer(dbias),
          {batch, channels, pixels},
          center,
          static_cast<DType>(dtype),
          pointer(bias),
          y};
}

inline void layer_norm2d_forward(ImageView x, ImageView y, Address weight, Address bias, Address mean, Address rstd,
                                 int64_t batch, int64_t channels, int64_t pixels, double eps, bool center, int dtype,
                                 int threads) {
  CPL_CALL_ISA(layer_norm2d_forward(
      layer_norm2d_forward_args(x, y, weight, bias, mean, rstd, batch, channels, pixels, eps, center, dtype), threads));
}

inline void layer_norm2d_backward(ImageView dy, ImageView x, ImageView dx, Address weight, Address mean, Address rstd,
                                  Address dweight, Address dbias, int64_t batch, int64_t channels, int64_t pixels,
                                  bool center, int dtype, Address bias, ImageView y, int threads) {
  CPL_CALL_ISA(layer_norm2d_backward(layer_norm2d_backward_args(dy, x, dx, weight, mean, rstd, dweight, dbias, batch,
                                                                channels, pixels, center, dtype, bias, y),
                                     threads));
}

#if defined(CPL_WITH_CUDA)
inline int64_t layer_norm2d_partial_rows(int64_t batch, int64_t channels, int64_t pixels) {
  return cuda::layer_norm2d_partial_rows({batch, channels, pixels});
}

inline void layer_norm2d_forward_cuda(ImageView x, ImageView y, Address weight, Address bias, Address mean,
                                      Address rstd, int64_t batch, int64_t channels, int64_t pixels, double eps,
                                      bool center, int dtype, Address stream) {
  cuda::layer_norm2d_forward(
      layer_norm2d_forward_args(x, y, weight, bias, mean, rstd, batch, channels, pixels, eps, center, dtype),
      pointer(stream));
}

inline void layer_norm2d_backward_cuda(ImageView dy, ImageView x, ImageView dx, Address weight, Address mean,
                                       Address rstd, Address dweight, Address dbias, int64_t batch, int64_t channels,
                                       int64_t pixels, bool center, int dtype, Address partial, Address stream) {
  cuda::layer_norm2d_backward(
      layer_norm2d_backward_args(dy, x, dx, weight, mean, rstd, dweight, dbias, batch, channels, pixels, center, dtype),
      pointer(partial), pointer(stream));
}
#endif

}  // namespace cpl::bind
