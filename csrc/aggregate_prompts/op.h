// aggregate_prompts: what the CPU and the CUDA kernels are called with.
#pragma once

#include "common/isa.h"
#include "common/view.h"

namespace cpl {

// Everything is contiguous. The kernels compute in fp32, or in fp64 for fp64 prompts.
struct AggregateSize {
  int64_t batch;
  int64_t chosen;   // k
  int64_t prompts;  // N
  int64_t channels;
  int64_t source_height;
  int64_t source_width;
  int64_t height;
  int64_t width;
};

inline bool resized(const AggregateSize& s) { return s.height != s.source_height || s.width != s.source_width; }

struct AggregateForward {
  const void* weights;     // [B, k]
  const int64_t* indices;  // [B, k]
  const void* prompts;     // [N, C, S_h, S_w]
  void* y;                 // [B, C, H, W]
  AggregateSize size;
  DType weights_dtype;
  DType dtype;  // of prompts, y, dy and dprompts
};

struct AggregateBackward {
  const void* dy;          // [B, C, H, W]
  const void* weights;     // [B, k]
  const int64_t* indices;  // [B, k]
  const void* prompts;     // [N, C, S_h, S_w]
  void* dweights;          // [B, k], or null: not needed
  void* dprompts;          // [N, C, S_h, S_w], or null: not needed
  AggregateSize size;
  DType weights_dtype;
  DType dtype;
};

// Throw std::invalid_argument, before anything is read through it, when an index is not from 0 to N-1.
CPL_DECLARE_PER_ISA(void aggregate_prompts_forward(const AggregateForward& args, int threads))
CPL_DECLARE_PER_ISA(void aggregate_prompts_backward(const AggregateBackward& args, int threads))

#if defined(CPL_WITH_CUDA)
namespace cuda {
// On CUDA an index out of range is not looked for: its image and the gradient of its weight are NaN.
// Columns of the scratch buffer [B * k, planes] (fp32, fp64 for fp64 prompts) for the backward's partial sums.
int64_t aggregate_prompts_planes(const AggregateSize& size);
void aggregate_prompts_forward(const AggregateForward& args, void* stream);
void aggregate_prompts_backward(const AggregateBackward& args, void* partial, void* stream);
}  // namespace cuda
#endif

}  // namespace cpl
