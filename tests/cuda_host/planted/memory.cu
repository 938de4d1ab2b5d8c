// Reads and writes where there is nothing.
#include "planted.h"

namespace cpl::planted {
namespace {

// The bug: the bound check that the last block needs is off by one.
template <bool kBuggy>
__global__ void out_of_bounds_write_kernel(const float* x, float* y, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (kBuggy ? i <= n : i < n) y[i] = i < n ? x[i] : 0.0f;
}

// The bug: the neighbour before the first is read, though not used.
template <bool kBuggy>
__global__ void out_of_bounds_read_kernel(const float* x, float* y, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const float before = kBuggy ? x[i - 1] : (i > 0 ? x[i - 1] : 0.0f);
  y[i] = x[i] + 0.0f * (i > 0 ? before : 0.0f);
}

// The bug: a row of shared memory one element short.
template <bool kBuggy>
__global__ void static_shared_overrun_kernel(const float* x, float* y, int64_t n) {
  __shared__ float tile[kBuggy ? kThreads - 1 : kThreads];
  float* row = tile;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  row[threadIdx.x] = i < n ? x[i] : 0.0f;
  __syncthreads();
  if (i < n) y[i] = row[threadIdx.x];
}

// The bug: twice the dynamic shared memory that the launch asked for.
template <bool kBuggy>
__global__ void dynamic_shared_overrun_kernel(const float* x, float* y, int64_t n) {
  CPL_DYNAMIC_SHARED(float, tile);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const unsigned at = kBuggy ? 2 * threadIdx.x : threadIdx.x;
  tile[at] = i < n ? x[i] : 0.0f;
  __syncthreads();
  if (i < n) y[i] = tile[at];
}

// The bug: sums start from what the last block, or nobody, left in shared memory.
template <bool kBuggy>
__global__ void uninitialised_shared_kernel(const float* x, float* y, int64_t n) {
  __shared__ float tile[kThreads];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (!kBuggy) tile[threadIdx.x] = 0;
  __syncthreads();
  tile[threadIdx.x] += i < n ? x[i] : 0.0f;
  __syncthreads();
  if (i < n) y[i] = tile[threadIdx.x];
}

// The bug: rows of n are taken for rows of a multiple of 4, so that float4 loads are misaligned.
template <bool kBuggy>
__global__ void misaligned_vector_kernel(const float* x, float* y, int64_t n) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 4;
  for (int64_t i = first; i < n && i < first + 4; ++i) y[i] = x[i];
  if (kBuggy && first + 5 <= n) {
    const float4 four = *reinterpret_cast<const float4*>(x + first + 1);
    y[first + 1] = four.x;
  }
  if (!kBuggy && first + 4 <= n) {
    const float4 four = *reinterpret_cast<const float4*>(x + first);
    y[first + 1] = four.y;
  }
}

}  // namespace

CPL_PLANTED(out_of_bounds_write, 0)
CPL_PLANTED(out_of_bounds_read, 0)
CPL_PLANTED(static_shared_overrun, 0)
CPL_PLANTED(dynamic_shared_overrun, kThreads * sizeof(float))
CPL_PLANTED(uninitialised_shared, 0)
CPL_PLANTED(misaligned_vector, 0)

}  // namespace cpl::planted

CUDA_HOST_ENTRY(cpl::planted, out_of_bounds_write);
CUDA_HOST_ENTRY(cpl::planted, out_of_bounds_read);
CUDA_HOST_ENTRY(cpl::planted, static_shared_overrun);
CUDA_HOST_ENTRY(cpl::planted, dynamic_shared_overrun);
CUDA_HOST_ENTRY(cpl::planted, uninitialised_shared);
CUDA_HOST_ENTRY(cpl::planted, misaligned_vector);
