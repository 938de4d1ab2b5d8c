// gated_dwconv as Python calls it.
#pragma once

#include "common/pyview.h"
#include "gated_dwconv/op.h"

namespace cpl::bind {

inline void gated_dwconv_forward(ImageView x, ImageView y, Address weight, Address bias, int64_t batch,
                                 int64_t channels, int64_t height, int64_t width, bool gelu, int dtype, int threads) {
  const GatedDwconvForward args{
      x, y, pointer(weight), pointer(bias), {batch, channels, height, width}, gelu, static_cast<DType>(dtype)};
  CPL_CALL_ISA(gated_dwconv_forward(args, threads));
}

inline void gated_dwconv_backward(ImageView dy, ImageView x, ImageView dx, Address weight, Address bias,
                                  Address dweight, Address dbias, int64_t batch, int64_t channels, int64_t height,
                                  int64_t width, bool gelu, int dtype, int threads) {
  const GatedDwconvBackward args{dy,
                                 x,
                                 dx,
                                 pointer(weight),
                                 pointer(bias),
                                 pointer(dweight),
                                 pointer(dbias),
                                 {batch, channels, height, width},
                                 gelu,
                                 static_cast<DType>(dtype)};
  CPL_CALL_ISA(gated_dwconv_backward(args, threads));
}

}  // namespace cpl::bind
