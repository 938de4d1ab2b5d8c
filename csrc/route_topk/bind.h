// route_topk as Python calls it.
#pragma once

#include "common/pyview.h"
#include "route_topk/op.h"

namespace cpl::bind {

inline RouteForward route_topk_forward_args(Address logits, Address weights, Address indices, int64_t batch,
                                            int64_t prompts, int64_t chosen, bool renormalize, int dtype) {
  return {pointer(logits),          pointer(weights), static_cast<int64_t*>(pointer(indices)),
          {batch, prompts, chosen}, renormalize,      static_cast<DType>(dtype)};
}

inline RouteBackward route_topk_backward_args(Address dweights, Address logits, Address indices, Address dlogits,
                                              int64_t batch, int64_t prompts, int64_t chosen, bool renormalize,
                                              int dtype) {
  return {pointer(dweights),        pointer(logits),          static_cast<const int64_t*>(pointer(indices)),
          pointer(dlogits),         {batch, prompts, chosen}, renormalize,
          static_cast<DType>(dtype)};
}

inline bool route_topk_forward(Address logits, Address weights, Address indices, int64_t batch, int64_t prompts,
                               int64_t chosen, bool renormalize, int dtype, int threads) {
  const RouteForward args =
      route_topk_forward_args(logits, weights, indices, batch, prompts, chosen, renormalize, dtype);
  CPL_CALL_ISA(route_topk_forward(args, threads));
}

inline void route_topk_backward(Address dweights, Address logits, Address indices, Address dlogits, int64_t batch,
                                int64_t prompts, int64_t chosen, bool renormalize, int dtype, int threads) {
  const RouteBackward args =
      route_topk_backward_args(dweights, logits, indices, dlogits, batch, prompts, chosen, renormalize, dtype);
  CPL_CALL_ISA(route_topk_backward(args, threads));
}

#if defined(CPL_WITH_CUDA)
inline void route_topk_forward_cuda(Address logits, Address weights, Address indices, int64_t batch, int64_t prompts,
                                    int64_t chosen, bool renormalize, int dtype, Address stream) {
  cuda::route_topk_forward(
      route_topk_forward_args(logits, weights, indices, batch, prompts, chosen, renormalize, dtype), pointer(stream));
}

inline void route_topk_backward_cuda(Address dweights, Address logits, Address indices, Address dlogits, int64_t batch,
                                     int64_t prompts, int64_t chosen, bool renormalize, int dtype, Address stream) {
  cuda::route_topk_backward(
      route_topk_backward_args(dweights, logits, indices, dlogits, batch, prompts, chosen, renormalize, dtype),
      pointer(stream));
}
#endif

}  // namespace cpl::bind
