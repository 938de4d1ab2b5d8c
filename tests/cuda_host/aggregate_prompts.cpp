// The entries of aggregate_prompts that csrc/module.cpp exports.
#include "aggregate_prompts/bind.h"

CUDA_HOST_ENTRY(cpl::bind, aggregate_prompts_planes);
CUDA_HOST_ENTRY(cpl::bind, aggregate_prompts_forward_cuda);
CUDA_HOST_ENTRY(cpl::bind, aggregate_prompts_backward_cuda);
