// layer_norm2d: what the CPU and the CUDA kernels are called with.
#pragma once

#include "common/isa.h"
#include "common/view.h"

namespace cpl {

// Both layouts are walked without a copy: planar (pixel stride 1, NCHW) and channels-last (channel
// stride 1). All views of a call share one of the two. weight, bias, mean, rstd, dweight and dbias
// are fp32, or fp64 for fp64 images.
struct LayerNorm2dSize {
  int64_t batch;
  int64_t channels;
  int64_t pixels;
};

struct LayerNorm2dForward {
  ImageView x;
  ImageView y;
  const void* weight;  // [C]
  const void* bias;    // [C] or null
  void* mean;          // [B, P]
  void* rstd;          // [B, P]
  LayerNorm2dSize size;
  double eps;
  bool center;
  DType dtype;
};

struct LayerNorm2dBackward {
  ImageView dy;
  ImageView x;
  ImageView dx;
  const void* weight;  // [C]
  const void* mean;    // [B, P]
  const void* rstd;    // [B, P]
  void* dweight;       // [C]
  void* dbias;         // [C]
  LayerNorm2dSize size;
  bool center;
  DType dtype;
  const void* bias;  // [C] or null; for y alone
  ImageView y;       // the forward's result once more, on a CPU; no data: not asked for
};

CPL_DECLARE_PER_ISA(void layer_norm2d_forward(const LayerNorm2dForward& args, int threads))
CPL_DECLARE_PER_ISA(void layer_norm2d_backward(const LayerNorm2dBackward& args, int threads))

#if defined(CPL_WITH_CUDA)
namespace cuda {
// Rows of the scratch buffer [rows, 2, C] (dtype of the statistics) that the backward sums dweight
// and dbias in; a function of the size alone, so that the sum has the same order every time.
int64_t layer_norm2d_partial_rows(const LayerNorm2dSize& size);
void layer_norm2d_forward(const LayerNorm2dForward& args, void* stream);
void layer_norm2d_backward(const LayerNorm2dBackward& args, void* partial, void* stream);
}  // namespace cuda
#endif

}  // namespace cpl
