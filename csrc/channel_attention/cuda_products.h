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
__device__ void add_squares(const uint32_t (&words)[kProductWords], float& squares) {
#pragma unroll
  for (int n = 0; n < kProductWords * kPerWord<T>; ++n) {
    const float value = element<T>(words[n / kPerWord<T>], n % kPerWord<T>);
    squares += value * value;
  }
}

// Operands of a chunk's rows as a step takes them: kRows (two for a, one for b) beside each other, two words of each.
template <int kRows>
using Operand = float[kParts][2 * kRows];

template <int kRows>
__device__ void split_rows(const uint32_t (*rows)[kProductWords], int word, Operand<kRows>& out) {
#pragma unroll
  for (int n = 0; n < 2 * kRows; ++n) {
    split_tf32(__uint_as_float(rows[n % kRows][word + n / kRows]), out[0][n], out[1][n]);
  }
}

// The sum of a chunk's steps is added to the rest in fp32, which rounds to nearest.
template <bool kSquares, typename T>
__device__ void multiply_rows(const uint32_t (&x)[kBandColumns][kProductWords],
                              const uint32_t (&y)[kBandColumns][kProductWords], Band& sum,
                              float (&x_squares)[kBandColumns], float (&y_squares)[kBandColumns]) {
  constexpr int kHalves = kProductWords / 2;
  Operand<2> a[kBandRows][kHalves];
#pragma unroll
  for (int m = 0; m < kBandRows; ++m) {
    if constexpr (kSquares) {
      add_squares<T>(x[2 * m], x_squares[2 * m]);
      add_squares<T>(x[2 * m + 1], x_squares[2 * m + 1]);
    }
    if constexpr (!kExact<T>) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) split_rows<2>(x + 2 * m, 2 * h, a[m][h]);
    }
  }
#pragma unroll
  for (int n = 0; n < kBandColumns; ++n) {
    if constexpr (kSquares) add_squares<T>(y[n], y_squares[n]);
    Operand<1> b[kHalves];
    if constexpr (!kExact<T>) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) split_rows<1>(y + n, 2 * h, b[h]);
    }
#pragma unroll
    for (int m = 0; m < kBandRows; ++m) {
      float steps[4] = {};
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        if constexpr (kExact<T>) {
          const uint32_t a_words[4] = {x[2 * m][2 * h], x[2 * m + 1][2 * h], x[2 * m][2 * h + 1],
                                       x[2 * m + 1][2 * h + 1]};
          const uint32_t b_words[2] = {y[n][2 * h], y[n][2 * h + 1]};
          mma_16<T>(steps, a_words, b_words, steps);
        } else {
          multiply_parts(steps, a[m][h], b[h], steps);
        }
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) sum[m][n][r] += steps[r];
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

// What the warps of a block have summed, added up in an order of its own and left for the small kernels.
template <bool kSquares>
__device__ void leave_sums(Band& sum, float (&x_squares)[kBandColumns], float (&y_squares)[kBandColumns], int64_t width,
                           const Sums<float>& sums) {
  __shared__ float stage[kStaged][kSteps][4][kLanes];
  __shared__ float squares[2][kProductWarps][kBand];
  const int thread = anew(threadIdx.x), warp = thread / kLanes, lane = thread % kLanes;
  const int pair = width > kBand ? 2 : 1;
  // The second half of the warps gives its sums to the first. What those have then is of one tile, and added up in
  // order, or each of its own.
  const auto leave = [&] {
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
#pragma unroll
      for (int r = 0; r < 4; ++r) stage[warp % kStaged][n][r][lane] = sum[n / kBandColumns][n % kBandColumns][r];
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
      for (int r = 0; r < 4; ++r) sum[n / kBandColumns][n % kBandColumns][r] += stage[warp][n][r][lane];
    }
    leave();
  }
  if constexpr (kSquares) {
    for (int n = thread; n < 2 * pair * kBand; n += kProductThreads) {
      const int which = n / (pair * kBand), tile = n / kBand % pair;
      if ((which == 0 ? blockIdx.z : blockIdx.y) != 0) continue;  // another block's to say
      float total = 0;
      for (int w = 0; w < kProductWarps; ++w) {
        const Place its(width, w);
        const int along = which == 0 ? its.row : its.column, across = which == 0 ? its.column : its.row;
        if (along == tile && across == 0) total += squares[which][w][n % kBand];
      }
      const int64_t channel = ((which == 0 ? blockIdx.y : blockIdx.z) * pair + tile) * kBand + n % kBand;
      if (channel < width) sums.squares[(static_cast<int64_t>(blockIdx.x) * 2 + which) * width + channel] = total;
    }
  }
  __syncthreads();
  float* const target = sums.products + static_cast<int64_t>(blockIdx.x) * width * width;
  const int first = pair == 1 ? 0 : warp % kStaged, last = pair == 1 ? kStaged - 1 : first;
  const Place place(width, first);
  const int64_t i = (blockIdx.y * pair + place.row) * kBand + lane / 4;
  const int64_t j = (blockIdx.z * pair + place.column) * kBand + lane % 4 * 2;
  for (int n = pair == 1 ? warp : warp / kStaged; n < kSteps;
       n += pair == 1 ? kProductWarps : kProductWarps / kStaged) {
    float results[4] = {};
    for (int w = first; w <= last; ++w) {
#pragma unroll
      for (int r = 0; r < 4; ++r) results[r] += stage[w][n][r][lane];
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int64_t row = i + n / kBandColumns * 16 + r / 2 * 8, column = j + n % kBandColumns * 8 + r % 2;
      if (row < width && column < width) target[row * width + column] = results[r];
    }
  }
}

// products[i, j] = <x_i, y_j> over a slice, and the squares of both. grid: (heads x slices, pairs of tiles of i, of j),
// or one tile of each.
template <bool kSquares, bool kWide, typename T>
__global__ void __launch_bounds__(kProductThreads, 1)
    products_mma(ImageView x_view, int x_third, ImageView y_view, int y_third, ChannelAttentionSize size,
                 Sums<float> sums) {
  constexpr int kElements = kProductWords * kPerWord<T>, kChunk = 4 * kElements;
  const int g = threadIdx.x % kLanes / 4, t = threadIdx.x % 4;
  const Place place(size.width, threadIdx.x / kLanes);
  const int pair = size.width > kBand ? 2 : 1, width = static_cast<int>(size.width);
  const auto slices = static_cast<unsigned>(sums.slices);
  const unsigned head = blockIdx.x / slices, slice = blockIdx.x % slices;
  const int i = (static_cast<int>(blockIdx.y) * pair + place.row) * kBand;
  const int j = (static_cast<int>(blockIdx.z) * pair + place.column) * kBand;
  const int x_rows = (width - i < kBand ? width - i : kBand) - g, y_rows = (width - j < kBand ? width - j : kBand) - g;
  const int64_t first = slice * sums.slice_pixels + place.split * kChunk;
  const int64_t all = size.pixels - first, its = sums.slice_pixels - place.split * kChunk;
  int64_t remaining = all < its ? all : its;    // pixels of the slice
  if (i >= width || j >= width) remaining = 0;  // no such tile
  const int ahead = kWide ? t * kElements : t;  // of a chunk's pixels, this lane's first
  const Head its_head(size, head);
  const Plane<const T> x(x_view, size, its_head, x_third), y(y_view, size, its_head, y_third);
  const T *x_at = x.at(i + g, first + ahead), *y_at = y.at(j + g, first + ahead);
  Band sum = {};
  float x_squares[kBandColumns] = {}, y_squares[kBandColumns] = {};
  for (; remaining > 0; remaining -= place.splits * kChunk) {
    uint32_t x_words[kBandColumns][kProductWords], y_words[kBandColumns][kProductWords];
    const int left = static_cast<int>(remaining < kChunk ? remaining : kChunk) - ahead;
    read_rows<kWide>(x_at, x, x_rows, left, x_words);
    read_rows<kWide>(y_at, y, y_rows, left, y_words);
    x_at += place.splits * kChunk * x.stride_pixel;
    y_at += place.splits * kChunk * y.stride_pixel;
    multiply_rows<kSquares, T>(x_words, y_words, sum, x_squares, y_squares);
  }
  leave_sums<kSquares>(sum, x_squares, y_squares, size.width, sums);
}

}  // namespace
}  // namespace cpl::cuda
