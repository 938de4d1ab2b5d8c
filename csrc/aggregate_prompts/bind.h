// aggregate_prompts as Python calls it.
#pragma once

#include "aggregate_prompts/op.h"
#include "common/pyview.h"

namespace cpl::bind {

inline AggregateForward aggregate_prompts_forward_args(Address weights, Address indices, Address prompts, Address y,
                                                       const AggregateSize& size, int weights_dtype, int dtype) {
  return {pointer(weights),
          static_cast<const int64_t*>(pointer(indices)),
          pointer(prompts),
          pointer(y),
          size,
          static_cast<DType>(weights_dtype),
          static_cast<DType>(dtype)};
}

inline AggregateBackward aggregate_prompts_backward_args(Address dy, Address weights, Address indices, Address prompts,
                                                         Address dweights, Address dprompts, const AggregateSize& size,
                                                         int weights_dtype, int dtype) {
  return {pointer(dy),
          pointer(weights),
          static_cast<const int64_t*>(pointer(indices)),
          pointer(prompts),
          pointer(dweights),
          pointer(dprompts),
          size,
          static_cast<DType>(weights_dtype),
          static_cast<DType>(dtype)};
}

inline void aggregate_prompts_forward(Address weights, Address indices, Address prompts, Address y, int64_t batch,
                                      int64_t chosen, int64_t count, int64_t channels, int64_t source_height,
                                      int64_t source_width, int64_t height, int64_t width, int weights_dtype, int dtype,
                                      int threads) {
  const AggregateForward args = aggregate_prompts_forward_args(
      weights, indices, prompts, y, {batch, chosen, count, channels, source_height, source_width, height, width},
      weights_dtype, dtype);
  CPL_CALL_ISA(aggregate_prompts_forward(args, threads));
}

inline void aggregate_prompts_backward(Address dy, Address weights, Address indices, Address prompts, Address dweights,
                                       Address dprompts, int64_t batch, int64_t chosen, int64_t count, int64_t channels,
                                       int64_t source_height, int64_t source_width, int64_t height, int64_t width,
                                       int weights_dtype, int dtype, int threads) {
  const AggregateBackward args = aggregate_prompts_backward_args(
      dy, weights, indices, prompts, dweights, dprompts,
      {batch, chosen, count, channels, source_height, source_width, height, width}, weights_dtype, dtype);
  CPL_CALL_ISA(aggregate_prompts_backward(args, threads));
}

#if defined(CPL_WITH_CUDA)
inline int64_t aggregate_prompts_planes(int64_t channels, int64_t source_height, int64_t source_width, int64_t height,
                                        int64_t width) {
  return cuda::aggregate_prompts_planes({0, 0, 0, channels, source_height, source_width, height, width});
}

inline void aggregate_prompts_forward_cuda(Address weights, Address indices, Address prompts, Address y, int64_t batch,
                                           int64_t chosen, int64_t count, int64_t channels, int64_t source_height,
                                           int64_t source_width, int64_t height, int64_t width, int weights_dtype,
                                           int dtype, Address stream) {
  cuda::aggregate_prompts_forward(
      aggregate_prompts_forward_args(weights, indices, prompts, y,
                                     {batch, chosen, count, channels, source_height, source_width, height, width},
                                     weights_dtype, dtype),
      pointer(stream));
}

inline void aggregate_prompts_backward_cuda(Address dy, Address weights, Address indices, Address prompts,
                                            Address dweights, Address dprompts, int64_t batch, int64_t chosen,
                                            int64_t count, int64_t channels, int64_t source_height,
                                            int64_t source_width, int64_t height, int64_t width, int weights_dtype,
                                            int dtype, Address partial, Address stream) {
  cuda::aggregate_prompts_backward(
      aggregate_prompts_backward_args(dy, weights, indices, prompts, dweights, dprompts,
                                      {batch, chosen, count, channels, source_height, source_width, height, width},
                                      weights_dtype, dtype),
      pointer(partial), pointer(stream));
}
#endif

}  // namespace cpl::bind
