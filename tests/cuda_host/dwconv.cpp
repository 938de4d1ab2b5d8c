// The entries of dwconv that csrc/module.cpp exports.
#include "dwconv/bind.h"

CUDA_HOST_ENTRY(cpl::bind, dwconv_partial);
CUDA_HOST_ENTRY(cpl::bind, dwconv_forward_cuda);
CUDA_HOST_ENTRY(cpl::bind, dwconv_backward_cuda);
