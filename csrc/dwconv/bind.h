// dwconv as Python calls it.
#pragma once

#include "common/pyview.h"
#include "dwconv/op.h"

namespace cpl::bind {

inline DwconvForward dwconv_forward_args(ImageView x, ImageView y, Address weight, Address bias, int64_t batch,
                                         int64_t channels, int64_t height, int64_t width, int kernel, int dtype) {
  return {x, y, pointer(weight), pointer(bias), {batch, channels, height, width}, kernel, static_cast<DType>(dtype)};
}

inline DwconvBackward dwconv_backward_args(ImageView dy, ImageView x, ImageView dx, Address weight, Address dweight,
                                           Address dbias, int64_t batch, int64_t channels, int64_t height,
                                           int64_t width, int kernel, int dtype) {
  return {dy,
          x,
          dx,
          pointer(weight),
          pointer(dweight),
          pointer(dbias),
          {batch, channels, height, width},
          kernel,
          static_cast<DType>(dtype)};
}

inline void dwconv_forward(ImageView x, ImageView y, Address weight, Address bias, int64_t batch, int64_t channels,
                           int64_t height, int64_t width, int kernel, int dtype, int threads) {
  CPL_CALL_ISA(
      dwconv_forward(dwconv_forward_args(x, y, weight, bias, batch, channels, height, width, kernel, dtype), threads));
}

inline void dwconv_backward(ImageView dy, ImageView x, ImageView dx, Address weight, Address dweight, Address dbias,
                            int64_t batch, int64_t channels, int64_t height, int64_t width, int kernel, int dtype,
                            int threads) {
  CPL_CALL_ISA(dwconv_backward(
      dwconv_backward_args(dy, x, dx, weight, dweight, dbias, batch, channels, height, width, kernel, dtype), threads));
}

#if defined(CPL_WITH_CUDA)
inline int64_t dwconv_partial(int64_t batch, int64_t channels, int64_t height, int64_t width, int kernel) {
  return cuda::dwconv_partial({batch, channels, height, width}, kernel);
}

inline void dwconv_forward_cuda(ImageView x, ImageView y, Address weight, Address bias, int64_t batch, int64_t channels,
                                int64_t height, int64_t width, int kernel, int dtype, Address stream) {
  cuda::dwconv_forward(dwconv_forward_args(x, y, weight, bias, batch, channels, height, width, kernel, dtype),
                       pointer(stream));
}

inline void dwconv_backward_cuda(ImageView dy, ImageView x, ImageView dx, Address weight, Address dweight,
                                 Address dbias, int64_t batch, int64_t channels, int64_t height, int64_t width,
                                 int kernel, int dtype, Address partial, Address stream) {
  cuda::dwconv_backward(
      dwconv_backward_args(dy, x, dx, weight, dweight, dbias, batch, channels, height, width, kernel, dtype),
      pointer(partial), pointer(stream));
}
#endif

}  // namespace cpl::bind
