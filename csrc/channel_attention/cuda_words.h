// How the tensor-core kernels of channel_attention hold pixels: as they lie in memory, in words of 32 bits, and what a
// step multiplies of them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/launch.h"
#include "common/mma.h"

namespace cpl::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kParts = 2;  // of an fp32 number in tf32

template <typename T>
constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));

template <typename T>
constexpr bool kExact = !std::is_same_v<T, float>;  // is an image of T one of tf32?

// x itself, but the compiler does not know: what it makes of it in or behind a loop it makes there, and does not keep
// in registers that the loop has no room for.
__device__ inline int anew(int x) {
#if !defined(CPL_CUDA_HOST)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

__device__ inline uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ inline uint32_t bits_of(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }
__device__ inline uint32_t bits_of(__half x) { return __half_as_ushort(x); }

// Element n of a word.
template <typename T>
__device__ float element(uint32_t word, int n) {
  if constexpr (std::is_same_v<T, float>) {
    return __uint_as_float(word);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __uint_as_float(n == 0 ? word << 16 : word & 0xffff0000u);
  } else {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(n == 0 ? word & 0xffffu : word >> 16)));
  }
}

template <typename T>
__device__ uint32_t word_of(const float* x) {
  if constexpr (std::is_same_v<T, float>) {
    return __float_as_uint(x[0]);
  } else {
    uint32_t word;
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(x[0], x[1]);
      memcpy(&word, &pair, sizeof word);
    } else {
      const __half2 pair = __floats2half2_rn(x[0], x[1]);
      memcpy(&word, &pair, sizeof word);
    }
    return word;
  }
}

// Reads pixels n = 0 .. of a row, at[apart * n]; those of them for which kApart * n < left, the others are zero.
// kWide: they are neighbours in aligned memory, and all of them are there or none.
template <bool kWide, int kApart, typename T, int kWords>
__device__ void read_words(const T* at, int64_t stride_pixel, int left, uint32_t (&words)[kWords]) {
  if constexpr (kWide) {
    using Vector = std::conditional_t<kWords == 4, uint4, uint2>;
    static_assert(sizeof(Vector) == sizeof words);
    Vector vector{};
    if (left > 0) vector = *reinterpret_cast<const Vector*>(at);
    words[0] = vector.x;
    words[1] = vector.y;
    if constexpr (kWords == 4) {
      words[2] = vector.z;
      words[3] = vector.w;
    }
  } else {
    constexpr int kEach = kPerWord<T>;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      words[w] = 0;
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        if (kApart * (w * kEach + e) < left) words[w] |= bits_of(*at) << (16 * e);
        at += kApart * stride_pixel;
      }
    }
  }
}

// d = a b + c of fp32 numbers in two tf32 parts, high and low. The product of the low parts is beyond fp32's digits.
__device__ inline void multiply_parts(float (&d)[4], const float (&a)[kParts][4], const float (&b)[kParts][2],
                                      const float (&c)[4]) {
  mma_tf32(d, a[1], b[0], c);
  mma_tf32(d, a[0], b[1], d);
  mma_tf32(d, a[0], b[0], d);
}

}  // namespace
}  // namespace cpl::cuda
