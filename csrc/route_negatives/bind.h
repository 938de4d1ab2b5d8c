// route_negatives as Python calls it.
#pragma once

#include "common/pyview.h"
#include "route_negatives/op.h"

namespace cpl::bind {

inline bool route_negatives(Address logits, Address seed, Address weights, Address indices, int64_t batch,
                            int64_t prompts, int64_t chosen, int64_t negatives, bool positive_weights, bool renormalize,
                            int dtype, int threads) {
  const NegativesForward args{pointer(logits),
                              static_cast<const int64_t*>(pointer(seed)),
                              pointer(weights),
                              static_cast<int64_t*>(pointer(indices)),
                              {batch, prompts, chosen, negatives},
                              positive_weights,
                              renormalize,
                              static_cast<DType>(dtype)};
  CPL_CALL_ISA(route_negatives(args, threads));
}

}  // namespace cpl::bind
