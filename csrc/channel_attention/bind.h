// channel_attention as Python calls it.
#pragma once

#include "channel_attention/op.h"
#include "common/pyview.h"

namespace cpl::bind {

inline void channel_attention_forward(ImageView qkv, ImageView y, Address temperature, Address q_norm, Address k_norm,
                                      Address cosines, int64_t batch, int64_t heads, int64_t width, int64_t pixels,
                                      int dtype, int threads) {
  const ChannelAttentionForward args{qkv,
                                     y,
                                     pointer(temperature),
                                     pointer(q_norm),
                                     pointer(k_norm),
                                     pointer(cosines),
                                     {batch, heads, width, pixels},
                                     static_cast<DType>(dtype)};
  CPL_CALL_ISA(channel_attention_forward(args, threads));
}

inline void channel_attention_backward(ImageView dy, ImageView qkv, ImageView dqkv, Address temperature, Address q_norm,
                                       Address k_norm, Address cosines, Address dtemperature, int64_t batch,
                                       int64_t heads, int64_t width, int64_t pixels, int dtype, int threads) {
  const ChannelAttentionBackward args{dy,
                                      qkv,
                                      dqkv,
                                      pointer(temperature),
                                      pointer(q_norm),
                                      pointer(k_norm),
                                      pointer(cosines),
                                      pointer(dtemperature),
                                      {batch, heads, width, pixels},
                                      static_cast<DType>(dtype)};
  CPL_CALL_ISA(channel_attention_backward(args, threads));
}

}  // namespace cpl::bind
