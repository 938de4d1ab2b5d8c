// The first matrix product of channel_attention on the tensor cores: of channels, over pixels.
//
// No pixel passes through shared memory. A lane reads 16 bytes of a row at a time, and takes from both rows of a
// product the same pixels in the same order; which pixel a step's k stands for does not matter to a sum over all of
// them.
#pragma once

#include <cstdint>

#include "channel_attention/cuda_shape.h"
#include "channel_attention/cuda_words.h"
#include "channel_attention/op.h"

namespace cpl::cuda {
namespace {

constexpr int kBand = 48;              // channels of a warp's tile, in both directions; a head of the model's, mostly
constexpr int kBandRows = kBand / 16;  // steps' results in it
constexpr int kBandColumns = kBand / 8;
constexpr int kSteps = kBandRows * kBandColumns;
constexpr int kProductWarps = 8;
constexpr int kStaged = kProductWarps / 2;  // warps whose results lie in shared memory at once
constexpr int kProductThreads = kProductWarps * kLanes;
constexpr int kProductWords = 4;

using Band = float[kBandRows][kBandColumns][4];

// Which tile of a block's a warp makes, and of which of its pixels. A head of one tile has all warps at it; a wider one
// four tiles to a block, so that warps that read the same rows find them in the L1 cache.
struct Place {
  int row;     // of tiles
  int column;  // of tiles
  int split;   // of pixels
  int splits;

  __device__ Place(int64_t width, int warp)
      : row(width > kBand ? warp / 2 % 2 : 0),
        column(width > kBand ? warp % 2 : 0),
        split(width > kBand ? warp / 4 : warp),
        splits(width > kBand ? kProductWarps / 4 : kProductWarps) {}
};

// Rows n = 0 .. 5 of a tile that a lane reads, 8 n + g.
template <bool kWide, typename T>
__device__ void read_rows(const T* at, const Plane<const T>& plane, int rows, int left,
                          uint32_t (&words)[kBandColumns][kProductWords]) {
#pragma unroll
  for (int n = 0; n < kBandColumns; ++n) {
    read_words<kWide, 4>(at, plane.stride_pixel, 8 * n < rows ? left : 0, words[n]);
    at += 8 * plane.stride_channel;
  }
}

template <typename T>
__device__ void add_squares(const uint32_t (&words)[kBandColumns][kProductWords], float (&squares)[kBandColumns]) {
#pragma unroll
  for (int n = 0; n < kBandColumns; ++n) {
#pragma unroll
    for (int w = 0; w < kProductWords; ++w) {
#pragma unroll
      for (int e = 0; e < kPerWord<T>; ++e) {
        const float value = element<T>(words[n][w], e);
        squares[n] += value * value;
      }
    }
  }
}

// The sums of a few steps are added to the rest in fp32, which rounds to nearest: the tensor cores round to zero.
template <typename T>
__device__ void multiply_rows(const uint32_t (&x)[kBandColumns][kProductWords],
                              const uint32_t (&y)[kBandColumns][kProductWords], Band& sum) {
#pragma unroll
  for (int w = 0; w < kProductWords; w += 2) {
    float a[kBandRows][kParts][4];
#pragma unroll
    for (int m = 0; m < kBandRows; ++m) {
      float upper[kParts][2], lower[kParts][2];
      parts<T>(x[2 * m][w], x[2 * m][w + 1], upper);
      parts<T>(x[2 * m + 1][w], x[2 * m + 1][w + 1], lower);
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        a[m][p][0] = upper[p][0];
        a[m][p][1] = lower[p][0];
        a[m][p][2] = upper[p][1];
        a[m][p][3] = lower[p][1];
      }
    }
#pragma unroll
    for (int n = 0; n < kBandColumns; ++n) {
      float b[kParts][2];
      parts<T>(y[n][w], y[n][w + 1], b);
#pragma unroll
      for (int m = 0; m < kBandRows; ++m) {
        float steps[4];
        multiply_parts<T>(steps, a[m], b, {0.0f, 0.0f, 0.0f, 0.0f});
#pragma unroll
        for (int r = 0; r < 4; ++r) sum[m][n][r] += steps[r];
      }
    }
  }
}

// The sum of a row's squares over the four lanes that read it, left by the first.
__device__ inline void leave_squares(float (&squares)[kBandColumns], float* row_squares) {
#pragma unroll
  for (int n = 0; n < kBandColumns; ++n) {
    squares[n] += __shfl_xor_sync(0xffffffffu, squares[n], 1);
    squares[n] += __shfl_xor_sync(0xffffffffu, squares[n], 2);
    if (threadIdx.x % 4 == 0) row_squares[8 * n + threadIdx.x % kLanes / 4] = squares[n];
  }
}

// products[i, j] = <x_i, y_j> over a slice, and the squares of both. grid: (heads x slices, pairs of tiles of i, of j),
// or one tile of each.
template <bool kSquares, bool kWide, typename T>
__global__ void __launch_bounds__(kProductThreads, 1)
    products_mma(ImageView x_view, int x_third, ImageView y_view, int y_third, ChannelAttentionSize size,
                 Sums<float> sums) {
  __shared__ float stage[kStaged][kSteps][4][kLanes];
  __shared__ float squares[2][kProductWarps][kBand];
  constexpr int kElements = kProductWords * kPerWord<T>, kChunk = 4 * kElements;
  const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes, g = lane / 4, t = lane % 4;
  const Place place(size.width, warp);
  const int pair = size.width > kBand ? 2 : 1;
  const auto slices = static_cast<unsigned>(sums.slices);
  const unsigned head = blockIdx.x / slices, slice = blockIdx.x % slices;
  const int64_t i = (static_cast<int64_t>(blockIdx.y) * pair + place.row) * kBand;
  const int64_t j = (static_cast<int64_t>(blockIdx.z) * pair + place.column) * kBand;
  const int64_t first = slice * sums.slice_pixels;
  int64_t end = first + sums.slice_pixels < size.pixels ? first + sums.slice_pixels : size.pixels;
  if (i >= size.width || j >= size.width) end = first;  // no such tile

  const Plane<const T> x(x_view, size, head, x_third), y(y_view, size, head, y_third);
  const int x_rows = static_cast<int>(size.width - i < kBand ? size.width - i : kBand) - g;
  const int y_rows = static_cast<int>(size.width - j < kBand ? size.width - j : kBand) - g;
  const int ahead = kWide ? t * kElements : t;  // of the chunk's pixels, this lane's first
  Band sum = {};
  float x_squares[kBandColumns] = {}, y_squares[kBandColumns] = {};
  for (int64_t pixel = first + place.split * kChunk; pixel < end; pixel += place.splits * kChunk) {
    uint32_t x_words[kBandColumns][kProductWords], y_words[kBandColumns][kProductWords];
    const int left = static_cast<int>(end - pixel < kChunk ? end - pixel : kChunk) - ahead;
    read_rows<kWide>(x.at(i + g, pixel + ahead), x, x_rows, left, x_words);
    read_rows<kWide>(y.at(j + g, pixel + ahead), y, y_rows, left, y_words);
    if constexpr (kSquares) {
      add_squares<T>(x_words, x_squares);
      add_squares<T>(y_words, y_squares);
    }
    multiply_rows<T>(x_words, y_words, sum);
  }

  // The second half of the warps gives its sums to the first. What those have then is of one tile, and added up in
  // order, or each of its own.
  const auto own = [&](int n) -> float(&)[4][kLanes] { return stage[warp % kStaged][n]; };
  const auto leave = [&] {
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
#pragma unroll
      for (int r = 0; r < 4; ++r) own(n)[r][lane] = sum[n / kBandColumns][n % kBandColumns][r];
    }
  };
  if (warp >= kStaged) leave();
  if constexpr (kSquares) {
    leave_squares(x_squares, squares[0][warp]);
    leave_squares(y_squares, squares[1][warp]);
  }
  __syncthreads();
  if (warp < kStaged) {
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
#pragma unroll
      for (int r = 0; r < 4; ++r) sum[n / kBandColumns][n % kBandColumns][r] += own(n)[r][lane];
    }
    leave();
  }
  if constexpr (kSquares) {
    for (int n = threadIdx.x; n < 2 * pair * kBand; n += kProductThreads) {
      const int which = n / (pair * kBand), tile = n / kBand % pair;
      if ((which == 0 ? blockIdx.z : blockIdx.y) != 0) continue;  // another block's to say
      float total = 0;
      for (int w = 0; w < kProductWarps; ++w) {
        const Place its(size.width, w);
        const int along = which == 0 ? its.row : its.column, across = which == 0 ? its.column : its.row;
        if (along == tile && across == 0) total += squares[which][w][n % kBand];
      }
      const int64_t channel = ((which == 0 ? blockIdx.y : blockIdx.z) * pair + tile) * kBand + n % kBand;
      if (channel < size.width) {
        sums.squares[(static_cast<int64_t>(blockIdx.x) * 2 + which) * size.width + channel] = total;
      }
    }
  }
  __syncthreads();
  float* const target = sums.products + static_cast<int64_t>(blockIdx.x) * size.width * size.width;
  const int from = pair == 1 ? 0 : warp % kStaged, until = pair == 1 ? kStaged : from + 1;
  for (int n = pair == 1 ? warp : warp / kStaged; n < kSteps; n += pair == 1 ? kProductWarps : kProductWarps / kStaged) {
    float results[4] = {};
    for (int w = from; w < until; ++w) {
#pragma unroll
      for (int r = 0; r < 4; ++r) results[r] += stage[w][n][r][lane];
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int64_t row = i + n / kBandColumns * 16 + r / 2 * 8 + g, column = j + n % kBandColumns * 8 + 2 * t + r % 2;
      if (row < size.width && column < size.width) target[row * size.width + column] = results[r];
    }
  }
}

}  // namespace
}  // namespace cpl::cuda
