// Neighbouring pixels of one channel, as a thread holds them: four, as they were loaded (16-bit types two to a
// register), or a single one where rows are not aligned. Eight of 16 bits would load 16 bytes at once too, but then
// sums and statistics of eight pixels take more registers and shuffles than the loads save.
#pragma once

#include <cstring>

#include "common/launch.h"
#include "layer_norm2d/cuda_plan.h"

namespace cpl::cuda {
namespace {

// Hides from the compiler that a value is the one it was: it would keep what it made of it, in registers that are
// short.
template <typename N>
__device__ void forget([[maybe_unused]] N& value) {
#if !defined(CPL_CUDA_HOST)
  asm volatile("" : "+r"(value));
#endif
}

// One store each; of a plain one the compiler makes four where it knows too little of what lies in between.
__device__ inline void store_words(void* to, unsigned a, unsigned b) {
#if defined(CPL_CUDA_HOST)
  *static_cast<uint2*>(to) = make_uint2(a, b);
#else
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(a), "r"(b) : "memory");
#endif
}
__device__ inline void store_words(void* to, float a, float b, float c, float d) {
#if defined(CPL_CUDA_HOST)
  *static_cast<float4*>(to) = make_float4(a, b, c, d);
#else
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
#endif
}

// The two elements of a word, the lower address first.
__device__ inline float low(unsigned word, __nv_bfloat16) { return __uint_as_float(word << 16); }
__device__ inline float high(unsigned word, __nv_bfloat16) { return __uint_as_float(word & 0xffff0000u); }
__device__ inline float low(unsigned word, __half) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xffffu)));
}
__device__ inline float high(unsigned word, __half) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
}
__device__ inline unsigned word_of(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  unsigned word;
  memcpy(&word, &pair, sizeof word);
  return word;
}
__device__ inline unsigned word_of(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  unsigned word;
  memcpy(&word, &pair, sizeof word);
  return word;
}

template <typename T, int V>
struct Run {
  static_assert(V == kRun && sizeof(T) == 2);
  unsigned words[2];

  __device__ void read(const T* from) {
    const uint2 both = *reinterpret_cast<const uint2*>(from);
    words[0] = both.x, words[1] = both.y;
  }
  __device__ float operator[](int v) const { return v % 2 == 0 ? low(words[v / 2], T()) : high(words[v / 2], T()); }
  static __device__ void write(T* to, const float (&values)[V]) {
    store_words(to, word_of(values[0], values[1], T()), word_of(values[2], values[3], T()));
  }
  __device__ void unpack_again() {  // for the next pass; what is unpacked takes twice the registers
    forget(words[0]);
    forget(words[1]);
  }
};

template <>
struct Run<float, kRun> {
  float values[4];

  __device__ void read(const float* from) {
    const float4 all = *reinterpret_cast<const float4*>(from);
    values[0] = all.x, values[1] = all.y, values[2] = all.z, values[3] = all.w;
  }
  __device__ float operator[](int v) const { return values[v]; }
  static __device__ void write(float* to, const float (&values)[4]) {
    store_words(to, values[0], values[1], values[2], values[3]);
  }
  __device__ void unpack_again() {}
};

template <typename T>
struct Run<T, 1> {
  float value;

  __device__ void read(const T* from) { value = load(from); }
  __device__ float operator[](int) const { return value; }
  static __device__ void write(T* to, const float (&values)[1]) { store(to, values[0]); }
  __device__ void unpack_again() {}
};

// The statistics of such pixels.
template <int V>
__device__ void read_floats(const float* from, float (&values)[V]) {
  Run<float, V> run;
  run.read(from);
#pragma unroll
  for (int v = 0; v < V; ++v) values[v] = run[v];
}

}  // namespace
}  // namespace cpl::cuda
