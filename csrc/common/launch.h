// Launching CUDA kernels, and the few device helpers that every op wants.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/dtype.h"

// The one way in which a kernel is launched, so that the CPU emulator of tests/cuda_host can take its place.
#if defined(CPL_CUDA_HOST)
#define CPL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::cuda_host::launch(#kernel, (grid), (block), (shared_bytes), (stream), kernel, __VA_ARGS__)
#else
#define CPL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                               \
  do {                                                                                           \
    kernel<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__); \
    ::cpl::cuda::check(cudaGetLastError(), #kernel);                                             \
  } while (0)
#endif

// Declares `type* name`: the dynamic shared memory of the launch, one region a block however often it is named.
#if defined(CPL_CUDA_HOST)
#define CPL_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::cuda_host::dynamic_shared())
#else
#define CPL_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char cpl_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(cpl_dynamic_shared)
#endif

namespace cpl::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
  }
}

__device__ inline float load(const float* p) { return *p; }
__device__ inline double load(const double* p) { return *p; }
__device__ inline float load(const __nv_bfloat16* p) { return __bfloat162float(*p); }
__device__ inline float load(const __half* p) { return __half2float(*p); }
__device__ inline void store(float* p, float value) { *p = value; }
__device__ inline void store(double* p, double value) { *p = value; }
__device__ inline void store(__nv_bfloat16* p, float value) { *p = __float2bfloat16_rn(value); }
__device__ inline void store(__half* p, float value) { *p = __float2half_rn(value); }

using CPL_ISA::Arithmetic;

// Sum over the 32 lanes of a warp, in a fixed tree; every lane gets it. All lanes must take part.
template <typename A>
__device__ inline A warp_sum(A value) {
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}

// Calls f with a null pointer of the element type.
template <typename F>
void dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(static_cast<float*>(nullptr));
    case DType::kFloat64:
      return f(static_cast<double*>(nullptr));
    case DType::kBFloat16:
      return f(static_cast<__nv_bfloat16*>(nullptr));
    case DType::kFloat16:
      return f(static_cast<__half*>(nullptr));
  }
  throw std::invalid_argument("unknown dtype code");
}

}  // namespace cpl::cuda
