// pointwise_conv: what the kernels are called with.
#pragma once

#include "common/isa.h"
#include "common/view.h"

namespace cpl {

struct PointwiseConvSize {
  int64_t batch;
  int64_t in;      // channels of x
  int64_t out;     // channels of y
  int64_t pixels;  // H * W
};

// Images are planar (pixel stride 1). Weight and bias are fp32, or fp64 for fp64 images.
//
// The gradient of x is the same with dy as x, dx as y, and the weight's strides exchanged.
struct PointwiseConvForward {
  ImageView x;         // [B, C, P]
  ImageView y;         // [B, O, P]
  ImageView residual;  // [B, O, P], or its data is null
  const void* weight;  // [O, C] at these strides, one of which is 1
  int64_t weight_stride_out, weight_stride_in;
  const void* bias;  // [O] or null
  PointwiseConvSize size;
  DType dtype;
};

struct PointwiseConvBackward {
  ImageView dy;   // [B, O, P]
  ImageView x;    // [B, C, P]
  void* dweight;  // [O, C] or null
  void* dbias;    // [O] or null
  PointwiseConvSize size;
  DType dtype;
};

CPL_DECLARE_PER_ISA(void pointwise_conv_forward(const PointwiseConvForward& args, int threads))
CPL_DECLARE_PER_ISA(void pointwise_conv_backward(const PointwiseConvBackward& args, int threads))

}  // namespace cpl
