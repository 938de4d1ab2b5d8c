// route_negatives: what the kernels are called with.
#pragma once

#include "common/isa.h"
#include "common/view.h"

namespace cpl {

struct NegativesSize {
  int64_t batch;
  int64_t prompts;    // N
  int64_t chosen;     // k
  int64_t negatives;  // K
};

// Everything is contiguous. The seed stands in memory: on a GPU its value is not known to the host.
struct NegativesForward {
  const void* logits;   // [B, N]
  const int64_t* seed;  // one
  void* weights;        // [K, B, k], dtype of logits
  int64_t* indices;     // [K, B, k]
  NegativesSize size;
  bool positive_weights;
  bool renormalize;
  DType dtype;
};

// False if some row has no softmax (NaN or +inf in it, or -inf throughout); the results then mean nothing.
CPL_DECLARE_PER_ISA(bool route_negatives(const NegativesForward& args, int threads))

#if defined(CPL_WITH_CUDA)
namespace cuda {
// On CUDA nobody looks at values: a row without a softmax gives NaN weights and some valid indices.
void route_negatives(const NegativesForward& args, void* stream);
}  // namespace cuda
#endif

}  // namespace cpl
