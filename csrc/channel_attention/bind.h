// channel_attention as Python calls it.
#pragma once

#include "channel_attention/op.h"
#include "common/pyview.h"

namespace cpl::bind {

inline ChannelAttentionForward channel_attention_forward_args(ImageView qkv, ImageView y, Address temperature,
                                                              Address q_norm, Address k_norm, Address cosines,
                                                              int64_t batch, int64_t heads, int64_t width,
                                                              int64_t pixels, int dtype) {
  return {qkv,
          y,
          pointer(temperature),
          pointer(q_norm),
          pointer(k_norm),
          pointer(cosines),
          {batch, heads, width, pixels},
          static_cast<DType>(dtype)};
}

inline ChannelAttentionBackward channel_attention_backward_args(ImageView dy, ImageView qkv, ImageView dqkv,
                                                                Address temperature, Address q_norm, Address k_norm,
                                                                Address cosines, Address dtemperature, int64_t batch,
                                                                int64_t heads, int64_t width, int64_t pixels,
                                                                int dtype) {
  return {dy,
          qkv,
          dqkv,
          pointer(temperature),
          pointer(q_norm),
          pointer(k_norm),
          pointer(cosines),
          pointer(dtemperature),
          {batch, heads, width, pixels},
          static_cast<DType>(dtype)};
}

inline void channel_attention_forward(ImageView qkv, ImageView y, Address temperature, Address q_norm, Address k_norm,
                                      Address cosines, int64_t batch, int64_t heads, int64_t width, int64_t pixels,
                                      int dtype, int threads) {
  CPL_CALL_ISA(channel_attention_forward(
      channel_attention_forward_args(qkv, y, temperature, q_norm, k_norm, cosines, batch, heads, width, pixels, dtype),
      threads));
}

inline void channel_attention_backward(ImageView dy, ImageView qkv, ImageView dqkv, Address temperature, Address q_norm,
                                       Address k_norm, Address cosines, Address dtemperature, int64_t batch,
                                       int64_t heads, int64_t width, int64_t pixels, int dtype, int threads) {
  CPL_CALL_ISA(
      channel_attention_backward(channel_attention_backward_args(dy, qkv, dqkv, temperature, q_norm, k_norm, cosines,
                                                                 dtemperature, batch, heads, width, pixels, dtype),
                                 threads));
}

#if defined(CPL_WITH_CUDA)
inline int64_t channel_attention_scratch(int64_t batch, int64_t heads, int64_t width, int64_t pixels) {
  return cuda::channel_attention_scratch({batch, heads, width, pixels});
}

inline void channel_attention_forward_cuda(ImageView qkv, ImageView y, Address temperature, Address q_norm,
                                           Address k_norm, Address cosines, int64_t batch, int64_t heads, int64_t width,
                                           int64_t pixels, int dtype, Address scratch, Address stream) {
  cuda::channel_attention_forward(
      channel_attention_forward_args(qkv, y, temperature, q_norm, k_norm, cosines, batch, heads, width, pixels, dtype),
      pointer(scratch), pointer(stream));
}

inline void channel_attention_backward_cuda(ImageView dy, ImageView qkv, ImageView dqkv, Address temperature,
                                            Address q_norm, Address k_norm, Address cosines, Address dtemperature,
                                            int64_t batch, int64_t heads, int64_t width, int64_t pixels, int dtype,
                                            Address scratch, Address stream) {
  cuda::channel_attention_backward(channel_attention_backward_args(dy, qkv, dqkv, temperature, q_norm, k_norm, cosines,
                                                                   dtemperature, batch, heads, width, pixels, dtype),
                                   pointer(scratch), pointer(stream));
}
#endif

}  // namespace cpl::bind
