// dwconv: what the kernels are called with.
#pragma once

#include "common/isa.h"
#include "common/view.h"

namespace cpl {

// Images are planar: the rows of a channel lie one behind the other (pixel stride 1, row stride W).
struct DwconvSize {
  int64_t batch;
  int64_t channels;
  int64_t height;
  int64_t width;
};

// weight and bias are fp32, or fp64 for fp64 images.
struct DwconvForward {
  ImageView x;         // [B, C, H, W]
  ImageView y;         // [B, C, H, W]
  const void* weight;  // [C, kernel * kernel]
  const void* bias;    // [C] or null
  DwconvSize size;
  int kernel;  // 3, 5 or 7
  DType dtype;
};

struct DwconvBackward {
  ImageView dy;        // [B, C, H, W]
  ImageView x;         // [B, C, H, W]
  ImageView dx;        // [B, C, H, W]
  const void* weight;  // [C, kernel * kernel]
  void* dweight;       // [C, kernel * kernel]
  void* dbias;         // [C]
  DwconvSize size;
  int kernel;  // 3, 5 or 7
  DType dtype;
};

CPL_DECLARE_PER_ISA(void dwconv_forward(const DwconvForward& args, int threads))
CPL_DECLARE_PER_ISA(void dwconv_backward(const DwconvBackward& args, int threads))

#if defined(CPL_WITH_CUDA)
namespace cuda {
// Elements (dtype of the weight) of the buffer in which the backward sums dweight and dbias.
int64_t dwconv_partial(const DwconvSize& size, int kernel);
void dwconv_forward(const DwconvForward& args, void* stream);
void dwconv_backward(const DwconvBackward& args, void* partial, void* stream);
}  // namespace cuda
#endif

}  // namespace cpl
