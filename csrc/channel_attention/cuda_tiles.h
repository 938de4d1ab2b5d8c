// The two matrix products of channel_attention without tensor cores, for fp64: tiles of 64 x 64 results, each thread
// with 4 x 4 of them, over steps of 32 that lie in shared memory. A tile is read along whichever of pixels and channels
// lie side by side.
#pragma once

#include <cstdint>

#include "channel_attention/cuda_shape.h"
#include "channel_attention/op.h"
#include "common/launch.h"

namespace cpl::cuda {
namespace {

constexpr int kTile = 64;             // of results, in both directions
constexpr int kSide = 16;             // threads of a block, in both directions
constexpr int kEach = kTile / kSide;  // results of a thread, in both directions, kSide apart
constexpr int kStep = 32;             // of a sum
constexpr int kThreads = kSide * kSide;
constexpr int kPitch = kTile + 1;  // neighbours along either direction lie in different banks

// tile[step][result] from channels (`kAlongChannels`: the step) and pixels; zeros outside. All threads take part.
template <bool kAlongChannels, typename T, typename A>
__device__ void read_tile(const Plane<const T>& plane, int64_t channel, int64_t channels, int64_t pixel, int64_t pixels,
                          A (*tile)[kPitch]) {
  constexpr int kChannels = kAlongChannels ? kStep : kTile, kPixels = kAlongChannels ? kTile : kStep;
  const int thread = threadIdx.y * kSide + threadIdx.x;
#pragma unroll 2  // eight at once would take half of all registers
  for (int i = thread; i < kChannels * kPixels; i += kThreads) {
    const int c = plane.planar() ? i / kPixels : i % kChannels, p = plane.planar() ? i % kPixels : i / kChannels;
    const bool inside = channel + c < channels && pixel + p < pixels;
    const A value = inside ? static_cast<A>(load(plane.at(channel + c, pixel + p))) : A(0);
    tile[kAlongChannels ? c : p][kAlongChannels ? p : c] = value;
  }
}

// sum[r][s] += the step's products of results `first` + kSide r and `second` + kSide s.
template <typename A>
__device__ void multiply(const A (*x)[kPitch], const A (*y)[kPitch], int first, int second, A (&sum)[kEach][kEach]) {
#pragma unroll 4
  for (int k = 0; k < kStep; ++k) {
    A a[kEach], b[kEach];
    for (int r = 0; r < kEach; ++r) a[r] = x[k][first + kSide * r];
    for (int s = 0; s < kEach; ++s) b[s] = y[k][second + kSide * s];
    for (int r = 0; r < kEach; ++r) {
      for (int s = 0; s < kEach; ++s) sum[r][s] += a[r] * b[s];
    }
  }
}

// products[i, j] = <x_i, y_j> over a slice, and the squares of both. grid: (heads x slices, tiles of i, tiles of j).
template <bool kSquares, typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    products(ImageView x_view, int x_third, ImageView y_view, int y_third, ChannelAttentionSize size, Sums<A> sums) {
  __shared__ A x_tile[kStep][kPitch];
  __shared__ A y_tile[kStep][kPitch];
  const int64_t head = blockIdx.x / sums.slices, slice = blockIdx.x % sums.slices;
  const int64_t i = static_cast<int64_t>(blockIdx.y) * kTile, j = static_cast<int64_t>(blockIdx.z) * kTile;
  const Head of_all(size, static_cast<unsigned>(head));
  const Plane<const T> x(x_view, size, of_all, x_third), y(y_view, size, of_all, y_third);
  const int64_t first = slice * sums.slice_pixels;
  const int64_t end = first + sums.slice_pixels < size.pixels ? first + sums.slice_pixels : size.pixels;
  A sum[kEach][kEach] = {};
  A x_square[kEach] = {}, y_square[kEach] = {};
  for (int64_t pixel = first; pixel < end; pixel += kStep) {
    __syncthreads();  // whoever still multiplies the last step must be done
    read_tile<false>(x, i, size.width, pixel, end, x_tile);
    read_tile<false>(y, j, size.width, pixel, end, y_tile);
    __syncthreads();
    multiply(x_tile, y_tile, threadIdx.y, threadIdx.x, sum);
    if constexpr (kSquares) {  // a row's pixels are shared out among the threads of the other direction
      for (int r = 0; r < kEach; ++r) {
        for (int p = 0; p < kStep; p += kSide) {
          const A a = x_tile[p + threadIdx.x][threadIdx.y + kSide * r];
          const A b = y_tile[p + threadIdx.y][threadIdx.x + kSide * r];
          x_square[r] += a * a;
          y_square[r] += b * b;
        }
      }
    }
  }
  A* const target = sums.products + static_cast<int64_t>(blockIdx.x) * size.width * size.width;
  for (int r = 0; r < kEach; ++r) {
    for (int s = 0; s < kEach; ++s) {
      const int64_t row = i + threadIdx.y + kSide * r, column = j + threadIdx.x + kSide * s;
      if (row < size.width && column < size.width) target[row * size.width + column] = sum[r][s];
    }
  }
  if constexpr (kSquares) {
    static_assert(2 * kSide <= kStep);
    __syncthreads();  // whoever still reads the last step must be done: its memory is used again
    A(*const squares)[kPitch] = x_tile;
    for (int r = 0; r < kEach; ++r) {
      squares[threadIdx.x][threadIdx.y + kSide * r] = x_square[r];
      squares[kSide + threadIdx.y][threadIdx.x + kSide * r] = y_square[r];
    }
    __syncthreads();
    const int thread = threadIdx.y * kSide + threadIdx.x;
    if (thread >= 2 * kTile) return;
    const int which = thread / kTile, row = thread % kTile;
    if ((which == 0 ? blockIdx.z : blockIdx.y) != 0) return;  // another block's to say
    const int64_t channel = (which == 0 ? i : j) + row;
    A total = 0;
    for (int k = 0; k < kSide; ++k) total += squares[which * kSide + k][row];
    if (channel < size.width) {
      sums.squares[(static_cast<int64_t>(blockIdx.x) * 2 + which) * size.width + channel] = total;
    }
  }
}

// grid: (heads x tiles of pixels, tiles of channels, factors); x and own are of one view.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    apply(ImageView x_view, ImageView z_view, ChannelAttentionSize size, Factor<A> first, Factor<A> second) {
  __shared__ A m_tile[kStep][kPitch];
  __shared__ A x_tile[kStep][kPitch];
  const Factor<A> factor = blockIdx.z == 0 ? first : second;
  const int64_t tiles = (size.pixels + kTile - 1) / kTile;
  const int64_t head = blockIdx.x / tiles, pixel = blockIdx.x % tiles * kTile;
  const int64_t channel = static_cast<int64_t>(blockIdx.y) * kTile;
  const Head of_all(size, static_cast<unsigned>(head));
  const Plane<const T> x(x_view, size, of_all, factor.x_third), own(x_view, size, of_all, factor.own_third);
  const Plane<T> z(z_view, size, of_all, factor.z_third);
  const A* const matrix = factor.matrix + head * size.width * size.width;
  const int thread = threadIdx.y * kSide + threadIdx.x;
  // Neighbouring threads write neighbours in memory.
  const int row = z.planar() ? threadIdx.y : threadIdx.x, column = z.planar() ? threadIdx.x : threadIdx.y;
  A sum[kEach][kEach] = {};
  for (int64_t k = 0; k < size.width; k += kStep) {
    __syncthreads();  // whoever still multiplies the last step must be done
    read_tile<true>(x, k, size.width, pixel, size.pixels, x_tile);
    for (int n = thread; n < kTile * kStep; n += kThreads) {
      const int i = factor.transposed ? n % kTile : n / kStep, j = factor.transposed ? n / kTile : n % kStep;
      const bool inside = channel + i < size.width && k + j < size.width;
      const int64_t entry = factor.transposed ? (k + j) * size.width + channel + i : (channel + i) * size.width + k + j;
      m_tile[j][i] = inside ? matrix[entry] : A(0);
    }
    __syncthreads();
    multiply(m_tile, x_tile, row, column, sum);
  }
  for (int r = 0; r < kEach; ++r) {
    for (int s = 0; s < kEach; ++s) {
      const int64_t c = channel + row + kSide * r, p = pixel + column + kSide * s;
      if (c >= size.width || p >= size.pixels) continue;
      A value = sum[r][s];
      if (factor.scale != nullptr) {
        value -= factor.scale[(head * 2 + factor.own_third) * size.width + c] * static_cast<A>(load(own.at(c, p)));
      }
      store(z.at(c, p), value);
    }
  }
}

}  // namespace
}  // namespace cpl::cuda
