// route_negatives as Python calls it.
#pragma once

#include "common/pyview.h"
#include "route_negatives/op.h"

namespace cpl::bind {

inline NegativesForward route_negatives_args(Address logits, Address seed, Address weights, Address indices,
                                             int64_t batch, int64_t prompts, int64_t chosen, int64_t negatives,
                                             bool positive_weights, bool renormalize, int dtype) {
  return {pointer(logits),
          static_cast<const int64_t*>(pointer(seed)),
          pointer(weights),
          static_cast<int64_t*>(pointer(indices)),
          {batch, prompts, chosen, negatives},
          positive_weights,
          renormalize,
          static_cast<DType>(dtype)};
}

inline bool route_negatives(Address logits, Address seed, Address weights, Address indices, int64_t batch,
                            int64_t prompts, int64_t chosen, int64_t negatives, bool positive_weights, bool renormalize,
                            int dtype, int threads) {
  const NegativesForward args = route_negatives_args(logits, seed, weights, indices, batch, prompts, chosen, negatives,
                                                     positive_weights, renormalize, dtype);
  CPL_CALL_ISA(route_negatives(args, threads));
}

#if defined(CPL_WITH_CUDA)
inline void route_negatives_cuda(Address logits, Address seed, Address weights, Address indices, int64_t batch,
                                 int64_t prompts, int64_t chosen, int64_t negatives, bool positive_weights,
                                 bool renormalize, int dtype, Address stream) {
  cuda::route_negatives(route_negatives_args(logits, seed, weights, indices, batch, prompts, chosen, negatives,
                                             positive_weights, renormalize, dtype),
                        pointer(stream));
}
#endif

}  // namespace cpl::bind
