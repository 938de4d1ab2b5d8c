// The entries of channel_attention that csrc/module.cpp exports.
#include "channel_attention/bind.h"

CUDA_HOST_ENTRY(cpl::bind, channel_attention_scratch);
CUDA_HOST_ENTRY(cpl::bind, channel_attention_forward_cuda);
CUDA_HOST_ENTRY(cpl::bind, channel_attention_backward_cuda);
