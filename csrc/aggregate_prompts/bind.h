// aggregate_prompts as Python calls it.
#pragma once

#include "aggregate_prompts/op.h"
#include "common/pyview.h"

namespace cpl::bind {

inline void aggregate_prompts_forward(Address weights, Address indices, Address prompts, Address y, int64_t batch,
                                      int64_t chosen, int64_t count, int64_t channels, int64_t source_height,
                                      int64_t source_width, int64_t height, int64_t width, int weights_dtype, int dtype,
                                      int threads) {
  const AggregateForward args{pointer(weights),
                              static_cast<const int64_t*>(pointer(indices)),
                              pointer(prompts),
                              pointer(y),
                              {batch, chosen, count, channels, source_height, source_width, height, width},
                              static_cast<DType>(weights_dtype),
                              static_cast<DType>(dtype)};
  CPL_CALL_ISA(aggregate_prompts_forward(args, threads));
}

inline void aggregate_prompts_backward(Address dy, Address weights, Address indices, Address prompts, Address dweights,
                                       Address dprompts, int64_t batch, int64_t chosen, int64_t count, int64_t channels,
                                       int64_t source_height, int64_t source_width, int64_t height, int64_t width,
                                       int weights_dtype, int dtype, int threads) {
  const AggregateBackward args{pointer(dy),
                               pointer(weights),
                               static_cast<const int64_t*>(pointer(indices)),
                               pointer(prompts),
                               pointer(dweights),
                               pointer(dprompts),
                               {batch, chosen, count, channels, source_height, source_width, height, width},
                               static_cast<DType>(weights_dtype),
                               static_cast<DType>(dtype)};
  CPL_CALL_ISA(aggregate_prompts_backward(args, threads));
}

}  // namespace cpl::bind
