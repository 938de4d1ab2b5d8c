// Barriers that are missing, or that not everyone comes to.
#include "planted.h"

namespace cpl::planted {
namespace {

// Reverses each block. The bug: others read before the owner wrote.
template <bool kBuggy>
__global__ void missing_barrier_kernel(const float* x, float* y, int64_t n) {
  __shared__ float tile[kThreads];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  tile[threadIdx.x] = i < n ? x[i] : 0.0f;
  if (!kBuggy) __syncthreads();
  if (i < n) y[i] = tile[kThreads - 1 - threadIdx.x];
}

// Rotates each block by one, twice. The bug: the second round overwrites what the first still reads.
template <bool kBuggy>
__global__ void missing_second_barrier_kernel(const float* x, float* y, int64_t n) {
  __shared__ float tile[kThreads];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  float value = i < n ? x[i] : 0.0f;
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = value;
    __syncthreads();
    value = tile[(threadIdx.x + 1) % kThreads];
    if (!kBuggy) __syncthreads();
  }
  if (i < n) y[i] = value;
}

// Reverses each warp. The bug: nothing orders the lanes, which used to run in lockstep.
template <bool kBuggy>
__global__ void missing_warp_barrier_kernel(const float* x, float* y, int64_t n) {
  __shared__ float tile[kThreads];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  tile[threadIdx.x] = i < n ? x[i] : 0.0f;
  if (!kBuggy) __syncwarp();
  if (i < n) y[i] = tile[threadIdx.x ^ 31];
}

// The bug: half of the block waits here, the other half there.
template <bool kBuggy>
__global__ void divergent_barrier_kernel(const float* x, float* y, int64_t n) {
  __shared__ float tile[kThreads];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  tile[threadIdx.x] = i < n ? x[i] : 0.0f;
  if (kBuggy && threadIdx.x < kThreads / 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  if (i < n) y[i] = tile[kThreads - 1 - threadIdx.x];
}

// The bug: threads past the end leave before the barrier.
template <bool kBuggy>
__global__ void early_exit_kernel(const float* x, float* y, int64_t n) {
  __shared__ float tile[kThreads];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  tile[threadIdx.x] = i < n ? x[i] : 0.0f;
  if (kBuggy && i >= n) return;
  __syncthreads();
  if (i < n) y[i] = tile[kThreads - 1 - threadIdx.x];
}

// The bug: one warp comes to the barrier once more often than the other.
template <bool kBuggy>
__global__ void uneven_rounds_kernel(const float* x, float* y, int64_t n) {
  __shared__ float tile[kThreads];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const unsigned rounds = kBuggy ? 1 + threadIdx.x / 32 : 2;
  for (unsigned round = 0; round < rounds; ++round) {
    tile[threadIdx.x] = i < n ? x[i] : 0.0f;
    __syncthreads();
  }
  if (i < n) y[i] = tile[kThreads - 1 - threadIdx.x];
}

// The bug: the blocks take turns, as if the grid ran in order.
template <bool kBuggy>
__global__ void block_order_kernel(const float* x, float* y, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  y[i] = kBuggy && i >= kThreads ? y[i - kThreads] + x[i] - x[i - kThreads] : x[i];
}

}  // namespace

CPL_PLANTED(missing_barrier, 0)
CPL_PLANTED(missing_second_barrier, 0)
CPL_PLANTED(missing_warp_barrier, 0)
CPL_PLANTED(divergent_barrier, 0)
CPL_PLANTED(early_exit, 0)
CPL_PLANTED(uneven_rounds, 0)
CPL_PLANTED(block_order, 0)

}  // namespace cpl::planted

CUDA_HOST_ENTRY(cpl::planted, missing_barrier);
CUDA_HOST_ENTRY(cpl::planted, missing_second_barrier);
CUDA_HOST_ENTRY(cpl::planted, missing_warp_barrier);
CUDA_HOST_ENTRY(cpl::planted, divergent_barrier);
CUDA_HOST_ENTRY(cpl::planted, early_exit);
CUDA_HOST_ENTRY(cpl::planted, uneven_rounds);
CUDA_HOST_ENTRY(cpl::planted, block_order);
