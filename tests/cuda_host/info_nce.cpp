// The entries of info_nce that csrc/module.cpp exports.
#include "info_nce/bind.h"

CUDA_HOST_ENTRY(cpl::bind, info_nce_scratch);
CUDA_HOST_ENTRY(cpl::bind, info_nce_sums_cuda);
CUDA_HOST_ENTRY(cpl::bind, info_nce_gradient_cuda);
