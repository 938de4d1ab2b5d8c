// One step of the tensor cores, sm_80 and later: 16 x 8 results, sums in fp32, of operands in tf32 (eight deep) or in a
// 16-bit type (sixteen deep).
//
// tf32 has the exponents of fp32 and 11 binary digits: every fp16 and bf16 number is one, and an fp32 number is the sum
// of two, to 2^-22 of itself. An infinity has no such second part: split, it becomes a NaN.
//
// Lane 4 g + t of a warp holds, of a step's results and operands,
//
//   d: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
//   a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)       of 16 rows x 8, tf32
//   b: (t, g), (t + 4, g)                                   of 8 x 8 columns, tf32
//
// and for 16-bit types the same words, each of two neighbours along k: 2t and 2t + 1 (low and high half) instead of t,
// 2t + 8 and 2t + 9 instead of t + 4. The sums are rounded towards zero.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

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

#if defined(CPL_CUDA_HOST)
// d = a b + c of words, each of which is kEach numbers along k: value(word, n) is number n of one.
template <int kEach, typename Value>
void mma_words(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4], Value value) {
  const auto both = [](uint32_t first, uint32_t second) { return static_cast<uint64_t>(second) << 32 | first; };
  const auto word = [](uint64_t words, int which) { return static_cast<uint32_t>(words >> (32 * which)); };
  uint64_t left[32], right[32], columns[32];  // of all lanes: a's first two words, its last two, b's
  cuda_host::gather("mma", both(a[0], a[1]), left);
  cuda_host::gather("mma", both(a[2], a[3]), right);
  cuda_host::gather("mma", both(b[0], b[1]), columns);
  const int g = cuda_host::lane_id() / 4, t = cuda_host::lane_id() % 4;
  for (int r = 0; r < 4; ++r) {
    double sum = c[r];
    for (int k = 0; k < 4; ++k) {
      const uint64_t column = columns[4 * (2 * t + r % 2) + k];
      for (int n = 0; n < kEach; ++n) {
        sum += value(word(left[4 * g + k], r / 2), n) * value(word(column, 0), n);
        sum += value(word(right[4 * g + k], r / 2), n) * value(word(column, 1), n);
      }
    }
    d[r] = static_cast<float>(sum);
  }
}
#endif

// d = a b + c, which may be d. All lanes of the warp take part. The last 13 bits of a and b are not looked at.
__device__ inline void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2], const float (&c)[4]) {
  const uint32_t a_words[4] = {__float_as_uint(a[0]), __float_as_uint(a[1]), __float_as_uint(a[2]),
                               __float_as_uint(a[3])};
  const uint32_t b_words[2] = {__float_as_uint(b[0]), __float_as_uint(b[1])};
#if defined(CPL_CUDA_HOST)
  mma_words<1>(d, a_words, b_words, c, [](uint32_t word, int) -> double {
    const float x = __uint_as_float(word);
    return x != x ? x : __uint_as_float(word & 0xffffe000u);
  });
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a_words[0]), "r"(a_words[1]), "r"(a_words[2]), "r"(a_words[3]), "r"(b_words[0]), "r"(b_words[1]), "f"(c[0]),
        "f"(c[1]), "f"(c[2]), "f"(c[3]));
#endif
}

// The same of words of two T, __nv_bfloat16 or __half.
template <typename T>
__device__ void mma_16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
  constexpr bool kHalf = std::is_same_v<T, __half>;
  static_assert(kHalf || std::is_same_v<T, __nv_bfloat16>);
#if defined(CPL_CUDA_HOST)
  mma_words<2>(d, a, b, c, [](uint32_t word, int n) -> double {
    const auto bits = static_cast<uint16_t>(word >> (16 * n));
    return static_cast<float>(T::from_bits(bits));
  });
#else
#define CPL_MMA_16(type)                                     \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "  \
      "{%10, %11, %12, %13};"                                \
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])       \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]))
  if constexpr (kHalf) {
    CPL_MMA_16("f16");
  } else {
    CPL_MMA_16("bf16");
  }
#undef CPL_MMA_16
#endif
}

}  // namespace cpl::cuda
