// The entries of gated_dwconv that csrc/module.cpp exports.
#include "gated_dwconv/bind.h"

CUDA_HOST_ENTRY(cpl::bind, gated_dwconv_partial);
CUDA_HOST_ENTRY(cpl::bind, gated_dwconv_forward_cuda);
CUDA_HOST_ENTRY(cpl::bind, gated_dwconv_backward_cuda);
