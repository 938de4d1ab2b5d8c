// route_topk: what the kernels are called with.
#pragma once

#include "common/isa.h"
#include "common/view.h"

namespace cpl {

struct RouteSize {
  int64_t batch;
  int64_t prompts;  // N
  int64_t chosen;   // k
};

// Everything is contiguous and of one dtype.
struct RouteForward {
  const void* logits;  // [B, N]
  void* weights;       // [B, k]
  int64_t* indices;    // [B, k]
  RouteSize size;
  bool renormalize;
  DType dtype;
};

struct RouteBackward {
  const void* dweights;    // [B, k]
  const void* logits;      // [B, N]
  const int64_t* indices;  // [B, k]
  void* dlogits;           // [B, N]
  RouteSize size;
  bool renormalize;
  DType dtype;
};

// False if some row has no softmax (NaN or +inf in it, or -inf throughout); the results then mean nothing.
CPL_DECLARE_PER_ISA(bool route_topk_forward(const RouteForward& args, int threads))
// Throws std::invalid_argument for an index that is not from 0 to N-1.
CPL_DECLARE_PER_ISA(void route_topk_backward(const RouteBackward& args, int threads))

#if defined(CPL_WITH_CUDA)
namespace cuda {
// On CUDA nobody looks at values: a row without a softmax gives NaN weights and some valid indices.
void route_topk_forward(const RouteForward& args, void* stream);
void route_topk_backward(const RouteBackward& args, void* stream);
}  // namespace cuda
#endif

}  // namespace cpl
