// The products of info_nce on CUDA: tiles of 64 x 64 pairs, each thread with 4 x 4 of them, over steps of 16 features
// that lie in shared memory. And which of those pairs count, and which are positive.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/launch.h"
#include "info_nce/op.h"

namespace cpl::cuda {
namespace {

constexpr int kTile = 64;             // of logits, in both directions
constexpr int kSide = 16;             // threads of a block, in both directions
constexpr int kEach = kTile / kSide;  // rows and columns of a thread
constexpr int kStep = kSide;          // features
constexpr int kThreads = kSide * kSide;
constexpr int kPitch = kTile + 4;  // a thread's four rows are read at once, aligned; features lie in different banks

// Which pairs a thread has: neighbouring rows, so that it reads them at once, and columns kSide apart, so that
// neighbouring threads write neighbours in memory.
struct Pairs {
  int64_t first_row;  // of the thread
  int64_t first_column;
  int64_t row_end;  // of the tile
  int64_t column_end;
  bool without_diagonal;

  __device__ explicit Pairs(const PairTile& tile)
      : first_row(tile.first_row + static_cast<int64_t>(blockIdx.y) * kTile + row_in_block(0)),
        first_column(tile.first_column + static_cast<int64_t>(blockIdx.x) * kTile + column_in_block(0)),
        row_end(tile.first_row + tile.rows),
        column_end(tile.first_column + tile.columns),
        without_diagonal(tile.without_diagonal) {}
  __device__ static int row_in_block(int r) { return threadIdx.y * kEach + r; }
  __device__ static int column_in_block(int s) { return threadIdx.x + kSide * s; }
  __device__ int64_t row(int r) const { return first_row + r; }
  __device__ int64_t column(int s) const { return first_column + kSide * s; }
  __device__ bool in_tile(int r, int s) const { return row(r) < row_end && column(s) < column_end; }
  __device__ bool compared(int r, int s) const { return in_tile(r, s) && !(without_diagonal && row(r) == column(s)); }
};

// What tells whether a pair is a positive of its row, and of its column: that what the one wants is what the other is.
struct Tags {
  int32_t row_wants[kEach], row_is[kEach], column_wants[kEach], column_is[kEach];

  __device__ Tags(const Positives& positives, const Pairs& pairs) {
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      const int64_t row = pairs.row(n), column = pairs.column(n);
      const auto of_row = [&](const int32_t* tags) { return row < pairs.row_end ? tags[row] : -1; };
      const auto of_column = [&](const int32_t* tags) { return column < pairs.column_end ? tags[column] : -2; };
      row_wants[n] = row_is[n] = -1;  // as Positives has it, these are equal to nothing
      column_wants[n] = column_is[n] = -2;
      if (positives.row_labels != nullptr) {
        row_wants[n] = row_is[n] = of_row(positives.row_labels);
        column_wants[n] = column_is[n] = of_column(positives.column_labels);
      } else if (positives.row_targets != nullptr) {
        row_wants[n] = of_row(positives.row_targets);
        row_is[n] = static_cast<int32_t>(row);
        column_is[n] = static_cast<int32_t>(column);
        if (positives.column_targets != nullptr) column_wants[n] = of_column(positives.column_targets);
      }
    }
  }
  __device__ bool of_row(int r, int s) const { return row_wants[r] == column_is[s]; }
  __device__ bool of_column(int r, int s) const { return column_wants[s] == row_is[r]; }
};

template <typename A>
__device__ A scale_of(const PairTile& tile) {
  const A temperature = *static_cast<const A*>(tile.temperature);
  return temperature > 0 ? 1 / temperature : static_cast<A>(NAN);
}

// part[feature][vector], of vectors from `first` on; zeros outside.
template <typename T, typename A>
__device__ void read_vectors(const void* data, int64_t first, int64_t end, int64_t feature, int64_t features,
                             A (*part)[kPitch]) {
  const T* const vectors = static_cast<const T*>(data) + feature + threadIdx.x;
  const bool known = feature + threadIdx.x < features;
#pragma unroll
  for (int i = threadIdx.y; i < kTile; i += kSide) {
    part[threadIdx.x][i] = known && first + i < end ? static_cast<A>(load(vectors + (first + i) * features)) : A(0);
  }
}

// product[r][s] of the thread's rows and columns. All threads of the block take part.
template <typename T, typename A>
__device__ void multiply(const PairTile& tile, A (&product)[kEach][kEach]) {
  __shared__ __align__(16) A queries[kStep][kPitch];
  __shared__ __align__(16) A keys[kStep][kPitch];
  const int64_t row = tile.first_row + static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t column = tile.first_column + static_cast<int64_t>(blockIdx.x) * kTile;
  for (int64_t feature = 0; feature < tile.features; feature += kStep) {
    __syncthreads();  // whoever still multiplies the last step must be done
    read_vectors<T>(tile.query, row, tile.first_row + tile.rows, feature, tile.features, queries);
    read_vectors<T>(tile.key, column, tile.first_column + tile.columns, feature, tile.features, keys);
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kStep; ++k) {
      A a[kEach], b[kEach];
      for (int r = 0; r < kEach; ++r) a[r] = queries[k][Pairs::row_in_block(r)];
      for (int s = 0; s < kEach; ++s) b[s] = keys[k][Pairs::column_in_block(s)];
      for (int r = 0; r < kEach; ++r) {
        for (int s = 0; s < kEach; ++s) product[r][s] += a[r] * b[s];
      }
    }
  }
}

}  // namespace
}  // namespace cpl::cuda
