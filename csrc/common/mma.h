// One step of the tensor cores, sm_80 and later: 16 x 8 results, eight deep, operands in tf32, sums in fp32.
//
// tf32 has the exponents of fp32 and 11 binary digits: every fp16 and bf16 number is one, and an fp32 number is the sum
// of two, to 2^-22 of itself. An infinity has no such second part: split, it becomes a NaN.
//
// Lane 4 g + t of a warp holds, of a step's operands,
//
//   a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)   of 16 rows x 8
//   b: (t, g), (t + 4, g)                               of 8 x 8 columns
//   d: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cpl::cuda {

// To the nearest tf32 number; a NaN stays one.
__device__ inline float to_tf32(float x) {
#if defined(CPL_CUDA_HOST)
  return x != x ? x : __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
#endif
}

// x = high + low, but for 2^-22 of it.
__device__ inline void split_tf32(float x, float& high, float& low) {
  high = to_tf32(x);
  low = to_tf32(x - high);
}

// d = a b + c, which may be d. All lanes of the warp take part. The last 13 bits of a and b are not looked at.
__device__ inline void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2], const float (&c)[4]) {
#if defined(CPL_CUDA_HOST)
  const auto both = [](float first, float second) {
    const auto seen = [](float x) { return x != x ? 0x7fffffffu : __float_as_uint(x) & 0xffffe000u; };
    return static_cast<uint64_t>(seen(second)) << 32 | seen(first);
  };
  const auto part = [](uint64_t bits, int which) {
    return static_cast<double>(__uint_as_float(static_cast<uint32_t>(bits >> (32 * which))));
  };
  uint64_t upper[32], lower[32], right[32];  // of all lanes: a's first two, its last two, b
  cuda_host::gather("mma_tf32", both(a[0], a[1]), upper);
  cuda_host::gather("mma_tf32", both(a[2], a[3]), lower);
  cuda_host::gather("mma_tf32", both(b[0], b[1]), right);
  const int g = cuda_host::lane_id() / 4, t = cuda_host::lane_id() % 4;
  for (int n = 0; n < 4; ++n) {
    const int row = n / 2, column = 2 * t + n % 2;
    double sum = c[n];
    for (int k = 0; k < 4; ++k) {
      sum += part(upper[4 * g + k], row) * part(right[4 * column + k], 0);
      sum += part(lower[4 * g + k], row) * part(right[4 * column + k], 1);
    }
    d[n] = static_cast<float>(sum);
  }
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#endif
}

}  // namespace cpl::cuda
