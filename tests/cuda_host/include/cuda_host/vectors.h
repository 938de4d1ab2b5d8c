// CUDA's vector types, with CUDA's alignment: UBSan reports a vector access through a misaligned pointer.
#pragma once

#include <cstdint>

#define CUDA_HOST_VECTORS(name, type, align1, align2, align4)                 \
  struct alignas(align1) name##1 { type x; };                                 \
  struct alignas(align2) name##2 { type x, y; };                              \
  struct name##3 { type x, y, z; };                                           \
  struct alignas(align4) name##4 { type x, y, z, w; };                        \
  inline name##1 make_##name##1(type x) { return {x}; }                       \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }            \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

CUDA_HOST_VECTORS(char, signed char, 1, 2, 4)
CUDA_HOST_VECTORS(uchar, unsigned char, 1, 2, 4)
CUDA_HOST_VECTORS(short, short, 2, 4, 8)
CUDA_HOST_VECTORS(ushort, unsigned short, 2, 4, 8)
CUDA_HOST_VECTORS(int, int, 4, 8, 16)
CUDA_HOST_VECTORS(uint, unsigned, 4, 8, 16)
CUDA_HOST_VECTORS(longlong, long long, 8, 16, 16)
CUDA_HOST_VECTORS(ulonglong, unsigned long long, 8, 16, 16)
CUDA_HOST_VECTORS(float, float, 4, 8, 16)
CUDA_HOST_VECTORS(double, double, 8, 16, 16)
#undef CUDA_HOST_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
