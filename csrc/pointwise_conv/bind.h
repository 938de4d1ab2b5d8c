// pointwise_conv as Python calls it.
#pragma once

#include "common/pyview.h"
#include "pointwise_conv/op.h"

namespace cpl::bind {

inline void pointwise_conv_forward(ImageView x, ImageView y, ImageView residual, Address weight,
                                   int64_t weight_stride_out, int64_t weight_stride_in, Address bias, int64_t batch,
                                   int64_t in, int64_t out, int64_t pixels, int dtype, int threads) {
  const PointwiseConvForward args{x,
                                  y,
                                  residual,
                                  pointer(weight),
                                  weight_stride_out,
                                  weight_stride_in,
                                  pointer(bias),
                                  {batch, in, out, pixels},
                                  static_cast<DType>(dtype)};
  CPL_CALL_ISA(pointwise_conv_forward(args, threads));
}

inline void pointwise_conv_backward(ImageView dy, ImageView x, Address dweight, Address dbias, int64_t batch,
                                    int64_t in, int64_t out, int64_t pixels, int dtype, int threads) {
  const PointwiseConvBackward args{
      dy, x, pointer(dweight), pointer(dbias), {batch, in, out, pixels}, static_cast<DType>(dtype)};
  CPL_CALL_ISA(pointwise_conv_backward(args, threads));
}

}  // namespace cpl::bind
