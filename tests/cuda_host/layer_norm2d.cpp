// The entries of layer_norm2d that csrc/module.cpp exports.
#include "layer_norm2d/bind.h"

CUDA_HOST_ENTRY(cpl::bind, layer_norm2d_partial_rows);
CUDA_HOST_ENTRY(cpl::bind, layer_norm2d_forward_cuda);
CUDA_HOST_ENTRY(cpl::bind, layer_norm2d_backward_cuda);
