// gated_dwconv: what the kernels are called with.
#pragma once

#include "common/isa.h"
#include "common/view.h"

namespace cpl {

// Images are planar: the rows of a channel lie one behind the other (pixel stride 1, row stride W).
struct GatedDwconvSize {
  int64_t batch;
  int64_t channels;  // C of the result; x has 2 C
  int64_t height;
  int64_t width;
};

// weight and bias are fp32, or fp64 for fp64 images.
struct GatedDwconvForward {
  ImageView x;         // [B, 2C, H, W]
  ImageView y;         // [B, C, H, W]
  const void* weight;  // [2C, 9]
  const void* bias;    // [2C] or null
  GatedDwconvSize size;
  bool gelu;
  DType dtype;
};

struct GatedDwconvBackward {
  ImageView dy;        // [B, C, H, W]
  ImageView x;         // [B, 2C, H, W]
  ImageView dx;        // [B, 2C, H, W]
  const void* weight;  // [2C, 9]
  const void* bias;    // [2C] or null
  void* dweight;       // [2C, 9]
  void* dbias;         // [2C]
  GatedDwconvSize size;
  bool gelu;
  DType dtype;
  ImageView y;  // [B, C, H, W]: the forward's result once more, on a CPU; no data: not asked for
};

CPL_DECLARE_PER_ISA(void gated_dwconv_forward(const GatedDwconvForward& args, int threads))
CPL_DECLARE_PER_ISA(void gated_dwconv_backward(const GatedDwconvBackward& args, int threads))

#if defined(CPL_WITH_CUDA)
namespace cuda {
// Elements (dtype of the weight) of the buffer in which the backward sums dweight and dbias; a function of the size
// alone, so that the sum has the same order every time.
int64_t gated_dwconv_partial(const GatedDwconvSize& size);
void gated_dwconv_forward(const GatedDwconvForward& args, void* stream);
void gated_dwconv_backward(const GatedDwconvBackward& args, void* partial, void* stream);
}  // namespace cuda
#endif

}  // namespace cpl
