// The entries of feature_distances that csrc/module.cpp exports.
#include "feature_distances/bind.h"

CUDA_HOST_ENTRY(cpl::bind, feature_distances_scratch);
CUDA_HOST_ENTRY(cpl::bind, feature_distances_forward_cuda);
CUDA_HOST_ENTRY(cpl::bind, feature_distances_backward_cuda);
