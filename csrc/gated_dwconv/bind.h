// gated_dwconv as Python calls it.
#pragma once

#include "common/pyview.h"
#include "gated_dwconv/op.h"

namespace cpl::bind {

inline GatedDwconvForward gated_dwconv_forward_args(ImageView x, ImageView y, Address weight, Address bias,
                                                    int64_t batch, int64_t channels, int64_t height, int64_t width,
                                                    bool gelu, int dtype) {
  return {x, y, pointer(weight), pointer(bias), {batch, channels, height, width}, gelu, static_cast<DType>(dtype)};
}

inline GatedDwconvBackward gated_dwconv_backward_args(ImageView dy, ImageView x, ImageView dx, Address weight,
                                                      Address bias, Address dweight, Address dbias, int64_t batch,
                                                      int64_t channels, int64_t height, int64_t width, bool gelu,
                                                      int dtype, ImageView y = {}) {
  return {dy,
          x,
          dx,
          pointer(weight),
          pointer(bias),
          pointer(dweight),
          pointer(dbias),
          {batch, channels, height, width},
          gelu,
          static_cast<DType>(dtype),
          y};
}

inline void gated_dwconv_forward(ImageView x, ImageView y, Address weight, Address bias, int64_t batch,
                                 int64_t channels, int64_t height, int64_t width, bool gelu, int dtype, int threads) {
  CPL_CALL_ISA(gated_dwconv_forward(
      gated_dwconv_forward_args(x, y, weight, bias, batch, channels, height, width, gelu, dtype), threads));
}

inline void gated_dwconv_backward(ImageView dy, ImageView x, ImageView dx, Address weight, Address bias,
                                  Address dweight, Address dbias, int64_t batch, int64_t channels, int64_t height,
                                  int64_t width, bool gelu, int dtype, ImageView y, int threads) {
  CPL_CALL_ISA(gated_dwconv_backward(gated_dwconv_backward_args(dy, x, dx, weight, bias, dweight, dbias, batch,
                                                                channels, height, width, gelu, dtype, y),
                                     threads));
}

#if defined(CPL_WITH_CUDA)
inline int64_t gated_dwconv_partial(int64_t batch, int64_t channels, int64_t height, int64_t width) {
  return cuda::gated_dwconv_partial({batch, channels, height, width});
}

inline void gated_dwconv_forward_cuda(ImageView x, ImageView y, Address weight, Address bias, int64_t batch,
                                      int64_t channels, int64_t height, int64_t width, bool gelu, int dtype,
                                      Address stream) {
  cuda::gated_dwconv_forward(gated_dwconv_forward_args(x, y, weight, bias, batch, channels, height, width, gelu, dtype),
                             pointer(stream));
}

inline void gated_dwconv_backward_cuda(ImageView dy, ImageView x, ImageView dx, Address weight, Address bias,
                                       Address dweight, Address dbias, int64_t batch, int64_t channels, int64_t height,
                                       int64_t width, bool gelu, int dtype, Address partial, Address stream) {
  cuda::gated_dwconv_backward(
      gated_dwconv_backward_args(dy, x, dx, weight, bias, dweight, dbias, batch, channels, height, width, gelu, dtype),
      pointer(partial), pointer(stream));
}
#endif

}  // namespace cpl::bind
