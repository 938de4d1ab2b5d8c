// The entries of route_negatives that csrc/module.cpp exports.
#include "route_negatives/bind.h"

CUDA_HOST_ENTRY(cpl::bind, route_negatives_cuda);
