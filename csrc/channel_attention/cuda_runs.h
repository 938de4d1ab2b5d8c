// Which pixels of a row a lane reads and writes in `apply_mma`.
//
// A warp has 32 of each row: four steps' results beside each other, eight columns each. Where rows can be read in wide
// words, those of a column n are four neighbours, an element of each step; else those of a step are eight.
#pragma once

#include <cstdint>

#include "channel_attention/cuda_words.h"
#include "common/launch.h"

namespace cpl::cuda {
namespace {

constexpr int kPixels = 32;            // of a warp's results
constexpr int kColumns = kPixels / 8;  // steps' results beside each other

// Pixel of element j of column n in a warp's 32.
template <bool kWide>
__device__ int pixel_of(int j, int n) {
  return kWide ? 4 * n + j : 8 * j + n;
}

// Eight pixels of a row, those of columns 2t and 2t + 1: a lane's results lie in this order.
constexpr int kRun = 2 * kColumns;
template <bool kWide>
__device__ int pixel_of_run(int n) {
  return pixel_of<kWide>(n % kColumns, 2 * (threadIdx.x % 4) + n / kColumns);
}

// From pixel n to the next, where they are read one by one.
__device__ constexpr int step_of_run(int n) { return n == kColumns - 1 ? 1 - 8 * (kColumns - 1) : 8; }

template <typename T>
using Run = uint32_t[kRun / kPerWord<T>];

// Those of them that are left; `row` points to the warp's first pixel.
template <bool kWide, typename T>
__device__ void read_run(const T* row, int64_t stride_pixel, int left, Run<T>& words) {
  constexpr int kEach = kPerWord<T>;
  if constexpr (kWide) {
    const int first = pixel_of_run<true>(0);
#pragma unroll
    for (int n = 0; n < kRun / kEach; n += 4) {
      uint32_t (&four)[4] = reinterpret_cast<uint32_t (&)[4]>(words[n]);
      read_words<true, 1>(row + first + n * kEach, 1, left - first - n * kEach, four);
    }
  } else {
    auto* at = row + pixel_of_run<false>(0) * stride_pixel;
#pragma unroll
    for (int n = 0; n < kRun; ++n) {
      const int pixel = pixel_of_run<false>(n);
      if (n % kEach == 0) words[n / kEach] = 0;
      if (pixel < left) words[n / kEach] |= bits_of(*at) << (16 * (n % kEach));
      at += step_of_run(n) * stride_pixel;
    }
  }
}

template <bool kWide, typename T>
__device__ void store_run(const float (&results)[kRun], T* row, int64_t stride_pixel, int left) {
  constexpr int kEach = kPerWord<T>;
  if constexpr (kWide) {
#pragma unroll
    for (int n = 0; n < kRun; n += 4 * kEach) {
      const int pixel = pixel_of_run<true>(0) + n;
      if (pixel >= left) continue;
      const float* const four = results + n;
      __stcg(reinterpret_cast<uint4*>(row + pixel),
             make_uint4(word_of<T>(four), word_of<T>(four + kEach), word_of<T>(four + 2 * kEach),
                        word_of<T>(four + 3 * kEach)));
    }
  } else {
    auto* at = row + pixel_of_run<false>(0) * stride_pixel;
#pragma unroll
    for (int n = 0; n < kRun; ++n) {
      if (pixel_of_run<false>(n) < left) store(at, results[n]);
      at += step_of_run(n) * stride_pixel;
    }
  }
}

}  // namespace
}  // namespace cpl::cuda
