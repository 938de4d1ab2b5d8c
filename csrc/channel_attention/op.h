// channel_attention: what the kernels are called with.
#pragma once

#include "common/isa.h"
#include "common/view.h"

namespace cpl {

// q, k and v are the three thirds of qkv's 3 * heads * width channels, each of `heads` runs of `width` channels.
// Both layouts are walked without a copy, planar (pixel stride 1) and channels-last (channel stride 1), each view of a
// call in its own. Everything that is no image is fp32, or fp64 for fp64 images.
struct ChannelAttentionSize {
  int64_t batch;
  int64_t heads;
  int64_t width;  // channels of a head
  int64_t pixels;

  CPL_HD int64_t channels() const { return heads * width; }
};

struct ChannelAttentionForward {
  ImageView qkv;            // [B, 3C, P]
  ImageView y;              // [B, C, P]
  const void* temperature;  // [heads]
  void* q_norm;             // [B, C], clamped
  void* k_norm;             // [B, C], clamped
  void* cosines;            // [B, heads, width, width]
  ChannelAttentionSize size;
  DType dtype;
};

struct ChannelAttentionBackward {
  ImageView dy;             // [B, C, P]
  ImageView qkv;            // [B, 3C, P]
  ImageView dqkv;           // [B, 3C, P]
  const void* temperature;  // [heads]
  const void* q_norm;       // [B, C]
  const void* k_norm;       // [B, C]
  const void* cosines;      // [B, heads, width, width]
  void* dtemperature;       // [heads]
  ChannelAttentionSize size;
  DType dtype;
};

CPL_DECLARE_PER_ISA(void channel_attention_forward(const ChannelAttentionForward& args, int threads))
CPL_DECLARE_PER_ISA(void channel_attention_backward(const ChannelAttentionBackward& args, int threads))

#if defined(CPL_WITH_CUDA)
namespace cuda {
// Elements (dtype of the statistics) of the scratch buffer of a call, forward or backward; a function of the size
// alone.
int64_t channel_attention_scratch(const ChannelAttentionSize& size);
void channel_attention_forward(const ChannelAttentionForward& args, void* scratch, void* stream);
void channel_attention_backward(const ChannelAttentionBackward& args, void* scratch, void* stream);
}  // namespace cuda
#endif

}  // namespace cpl
