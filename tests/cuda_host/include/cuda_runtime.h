// Stands in for the CUDA runtime's header, so that g++ compiles a .cu file and the kernels run on the
// CPU (tests/cuda_host/README.md says how, and what is checked on the way).
#pragma once

#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

#define __host__
#define __device__
#define __global__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#include "cuda_host/block.h"
// After block.h: these use the thread's own index.
#include "cuda_host/atomics.h"
#include "cuda_host/math.h"
#include "cuda_host/vectors.h"
#include "cuda_host/warp.h"

// Blocks run one after another, so a block's static shared memory is a static variable. The record
// beside it tells the runtime where it stands, and the runtime fills it with NaN at every block's start.
#define CUDA_HOST_JOIN_(a, b) a##b
#define CUDA_HOST_JOIN(a, b) CUDA_HOST_JOIN_(a, b)
#define __shared__                                                                                                  \
  [[maybe_unused]] static const ::cuda_host::SharedRecord CUDA_HOST_JOIN(cuda_host_shared_, __COUNTER__)(__FILE__,  \
                                                                                                         __LINE__); \
  static

// The host side of the runtime: one device, one stream, everything done when the call returns.
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
using cudaStream_t = struct CUstream_st*;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t status) { return status == cudaSuccess ? "no error" : "error"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 4 : static_cast<int>(cuda_host::kMaxSharedOptin);
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
  if (value < 0 || static_cast<size_t>(value) > cuda_host::kMaxSharedOptin) return cudaErrorInvalidValue;
  cuda_host::allow_dynamic_shared(reinterpret_cast<const void*>(kernel), static_cast<size_t>(value));
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}
