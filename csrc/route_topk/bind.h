// route_topk as Python calls it.
#pragma once

#include "common/pyview.h"
#include "route_topk/op.h"

namespace cpl::bind {

inline bool route_topk_forward(Address logits, Address weights, Address indices, int64_t batch, int64_t prompts,
                               int64_t chosen, bool renormalize, int dtype, int threads) {
  const RouteForward args{pointer(logits),          pointer(weights), static_cast<int64_t*>(pointer(indices)),
                          {batch, prompts, chosen}, renormalize,      static_cast<DType>(dtype)};
  CPL_CALL_ISA(route_topk_forward(args, threads));
}

inline void route_topk_backward(Address dweights, Address logits, Address indices, Address dlogits, int64_t batch,
                                int64_t prompts, int64_t chosen, bool renormalize, int dtype, int threads) {
  const RouteBackward args{
      pointer(dweights),        pointer(logits),          static_cast<const int64_t*>(pointer(indices)),
      pointer(dlogits),         {batch, prompts, chosen}, renormalize,
      static_cast<DType>(dtype)};
  CPL_CALL_ISA(route_topk_backward(args, threads));
}

}  // namespace cpl::bind
