// The entries of route_topk that csrc/module.cpp exports.
#include "route_topk/bind.h"

CUDA_HOST_ENTRY(cpl::bind, route_topk_forward_cuda);
CUDA_HOST_ENTRY(cpl::bind, route_topk_backward_cuda);
