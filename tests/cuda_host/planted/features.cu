// What kernels may use, each against what Python knows of it: no bugs here.
#include "common/mma.h"
#include "planted.h"

namespace cpl::planted {
namespace {

// y [10, n]: what every lane gets from each shuffle, vote and reduction of its value x.
__global__ void warp_functions_kernel(const float* x, float* y, int64_t n) {
  const int64_t i = threadIdx.x;
  const unsigned all = 0xffffffffu;
  const float v = x[i];
  y[0 * n + i] = __shfl_sync(all, v, 5);
  y[1 * n + i] = __shfl_sync(all, v, static_cast<int>(i) + 3, 8);
  y[2 * n + i] = __shfl_up_sync(all, v, 2);
  y[3 * n + i] = __shfl_up_sync(all, v, 1, 4);
  y[4 * n + i] = __shfl_down_sync(all, v, 3);
  y[5 * n + i] = __shfl_down_sync(all, v, 1, 16);
  y[6 * n + i] = __shfl_xor_sync(all, v, 9);
  y[7 * n + i] = static_cast<float>(__popc(__ballot_sync(all, v > 0)));
  y[8 * n + i] = static_cast<float>(__any_sync(all, v > 40) + 2 * __all_sync(all, v > -40));
  y[9 * n + i] = static_cast<float>(__reduce_max_sync(all, static_cast<int>(i)) + __syncthreads_count(v > 0));
  // Half a warp may meet by itself, and lanes that left are not waited for.
  if (threadIdx.x % 32 >= 16) return;
  y[0 * n + i] += __shfl_xor_sync(0x0000ffffu, v, 1);
  y[1 * n + i] += static_cast<float>(__popc(__ballot_sync(all, true)));
}

// Blocks in three dimensions: y[linear index of the thread] = an image of all its coordinates.
__global__ void coordinates_kernel(float* y) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  y[block * threads + thread] = static_cast<float>(block * 1000 + thread);
}

template <typename T>
__global__ void convert_kernel(const float* x, T* y, const double* wide, T* y_wide, float* back, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  y[i] = T(x[i]);
  y_wide[i] = T(wide[i]);
  back[i] = static_cast<float>(y[i]);
}

// y[0] integers counted, y[1] the largest, y[2] swaps that succeeded.
__global__ void atomics_kernel(int* y) {
  atomicAdd(&y[0], 1);
  atomicMax(&y[1], static_cast<int>(threadIdx.x));
  if (atomicCAS(&y[3], 0, 1) == 0) atomicAdd(&y[2], 1);
}

// d [16, 8] = a [16, k] b [8, k]^T by one warp: of tf32 (fp32 words), k = 8, or of 16-bit numbers, k = 16.
template <typename T>
__global__ void mma_kernel(const T* a, const T* b, float* d) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  float sum[4] = {};
  if constexpr (std::is_same_v<T, float>) {
    const float left[4] = {a[g * 8 + t], a[(g + 8) * 8 + t], a[g * 8 + t + 4], a[(g + 8) * 8 + t + 4]};
    const float right[2] = {b[g * 8 + t], b[g * 8 + t + 4]};
    cuda::mma_tf32(sum, left, right, sum);
  } else {
    uint32_t left[4], right[2];
    for (int n = 0; n < 4; ++n) memcpy(&left[n], a + (g + n % 2 * 8) * 16 + 2 * t + n / 2 * 8, 4);
    for (int n = 0; n < 2; ++n) memcpy(&right[n], b + g * 16 + 2 * t + n * 8, 4);
    cuda::mma_16<T>(sum, left, right, sum);
  }
  for (int n = 0; n < 4; ++n) d[(g + n / 2 * 8) * 8 + 2 * t + n % 2] = sum[n];
}

__global__ void split_tf32_kernel(const float* x, float* high, float* low, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) cuda::split_tf32(x[i], high[i], low[i]);
}

}  // namespace

void mma(Address a, Address b, Address d, int dtype, Address stream) {
  cuda::dispatch(static_cast<DType>(dtype), [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    if constexpr (!std::is_same_v<T, double>) {
      CPL_LAUNCH(mma_kernel<T>, 1, dim3(32), 0, pointer(stream), static_cast<const T*>(pointer(a)),
                 static_cast<const T*>(pointer(b)), static_cast<float*>(pointer(d)));
    }
  });
}

void split_tf32(Address x, Address high, Address low, int64_t n, Address stream) {
  CPL_LAUNCH(split_tf32_kernel, blocks(n), dim3(kThreads), 0, pointer(stream), static_cast<const float*>(pointer(x)),
             static_cast<float*>(pointer(high)), static_cast<float*>(pointer(low)), n);
}

void warp_functions(Address x, Address y, int64_t n, Address stream) {
  CPL_LAUNCH(warp_functions_kernel, 1, dim3(static_cast<unsigned>(n)), 0, pointer(stream),
             static_cast<const float*>(pointer(x)), static_cast<float*>(pointer(y)), n);
}

void coordinates(Address y, Address stream) {
  CPL_LAUNCH(coordinates_kernel, dim3(3, 2, 4), dim3(4, 3, 5), 0, pointer(stream), static_cast<float*>(pointer(y)));
}

void convert(Address x, Address y, Address wide, Address y_wide, Address back, int64_t n, int dtype, Address stream) {
  cuda::dispatch(static_cast<DType>(dtype), [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    CPL_LAUNCH(convert_kernel<T>, blocks(n), dim3(kThreads), 0, pointer(stream), static_cast<const float*>(pointer(x)),
               static_cast<T*>(pointer(y)), static_cast<const double*>(pointer(wide)), static_cast<T*>(pointer(y_wide)),
               static_cast<float*>(pointer(back)), n);
  });
}

void atomics(Address y, Address stream) {
  CPL_LAUNCH(atomics_kernel, 3, dim3(kThreads), 0, pointer(stream), static_cast<int*>(pointer(y)));
}

// A launch as large as asked for, of a kernel that does nothing: what the device refuses is refused.
void launch_only(int64_t grid, int64_t block, int64_t shared_bytes, Address stream) {
  struct Nothing {
    static __global__ void kernel(int) {}
  };
  CPL_LAUNCH(Nothing::kernel, static_cast<unsigned>(grid), dim3(static_cast<unsigned>(block)),
             static_cast<size_t>(shared_bytes), pointer(stream), 0);
}

}  // namespace cpl::planted

CUDA_HOST_ENTRY(cpl::planted, mma);
CUDA_HOST_ENTRY(cpl::planted, split_tf32);
CUDA_HOST_ENTRY(cpl::planted, warp_functions);
CUDA_HOST_ENTRY(cpl::planted, coordinates);
CUDA_HOST_ENTRY(cpl::planted, convert);
CUDA_HOST_ENTRY(cpl::planted, atomics);
CUDA_HOST_ENTRY(cpl::planted, launch_only);
