// Wrong indices, and lanes that do not meet.
#include "planted.h"

namespace cpl::planted {
namespace {

// A transpose of 8 x 8 tiles. The bug: row and column exchanged once too often.
template <bool kBuggy>
__global__ void wrong_index_kernel(const float* x, float* y, int64_t n) {
  __shared__ float tile[8][8];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads;
  const unsigned row = threadIdx.x / 8, column = threadIdx.x % 8;
  tile[row][column] = first + threadIdx.x < n ? x[first + threadIdx.x] : 0.0f;
  __syncthreads();
  if (first + threadIdx.x < n) y[first + threadIdx.x] = kBuggy ? tile[row][column] : tile[column][row];
}

// Sums each warp. The bug: the tree stops one level early.
template <bool kBuggy>
__global__ void short_tree_kernel(const float* x, float* y, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  float sum = i < n ? x[i] : 0.0f;
  for (int lane = 16; lane > (kBuggy ? 1 : 0); lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  if (i < n) y[i] = sum;
}

// Sums each warp. The bug: lanes past the end do not come, though the mask names them.
template <bool kBuggy>
__global__ void absent_lanes_kernel(const float* x, float* y, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (kBuggy && i >= n) return;
  float sum = i < n ? x[i] : 0.0f;
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  if (i < n) y[i] = sum;
}

// Sums each warp. The bug: half of it waits at the block's barrier.
template <bool kBuggy>
__global__ void divergent_warp_kernel(const float* x, float* y, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (kBuggy && threadIdx.x % 2 == 0) __syncthreads();
  float sum = i < n ? x[i] : 0.0f;
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  if (!kBuggy || threadIdx.x % 2 == 1) __syncthreads();
  if (i < n) y[i] = sum;
}

// Sums each warp. The bug: a mask of half the warp, which the other half calls with, too.
template <bool kBuggy>
__global__ void wrong_mask_kernel(const float* x, float* y, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const unsigned mask = kBuggy ? 0x0000ffffu : 0xffffffffu;
  float sum = i < n ? x[i] : 0.0f;
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(mask, sum, lane);
  if (i < n) y[i] = sum;
}

// Sums each warp with atomics. The bug: a sum of floats whose order nobody fixes.
template <bool kBuggy>
__global__ void order_of_atomics_kernel(const float* x, float* y, int64_t n) {
  __shared__ float sums[2];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const unsigned warp = threadIdx.x / 32;
  float sum = i < n ? x[i] : 0.0f;
  if (kBuggy) {
    if (threadIdx.x < 2) sums[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&sums[warp], sum);
    __syncthreads();
    sum = sums[warp];
  } else {
    for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  }
  if (i < n) y[i] = sum;
}

}  // namespace

CPL_PLANTED(wrong_index, 0)
CPL_PLANTED(short_tree, 0)
CPL_PLANTED(absent_lanes, 0)
CPL_PLANTED(divergent_warp, 0)
CPL_PLANTED(wrong_mask, 0)
CPL_PLANTED(order_of_atomics, 0)

}  // namespace cpl::planted

CUDA_HOST_ENTRY(cpl::planted, wrong_index);
CUDA_HOST_ENTRY(cpl::planted, short_tree);
CUDA_HOST_ENTRY(cpl::planted, absent_lanes);
CUDA_HOST_ENTRY(cpl::planted, divergent_warp);
CUDA_HOST_ENTRY(cpl::planted, wrong_mask);
CUDA_HOST_ENTRY(cpl::planted, order_of_atomics);
